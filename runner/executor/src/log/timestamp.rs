//! RFC 3339 times, made cheaply: the second's part only when the second has changed.

/// `YYYY-MM-DDThh:mm:ss.nnnnnnnnnZ`
const TIME_BYTES: usize = 30;

/// The last time that was formatted.
pub struct Timestamp {
    second: u64,
    text: [u8; TIME_BYTES],
}

impl Default for Timestamp {
    fn default() -> Timestamp {
        Timestamp {
            second: 0,
            text: *b"1970-01-01T00:00:00.000000000Z",
        }
    }
}

impl Timestamp {
    /// Nanoseconds since 1970, in UTC, always with nine digits.
    pub fn format(&mut self, nanoseconds: u64) -> &[u8] {
        let second = nanoseconds / 1_000_000_000;
        if second != self.second {
            self.second = second;
            self.format_second(second);
        }
        digits(&mut self.text[20..29], nanoseconds % 1_000_000_000);
        &self.text
    }

    fn format_second(&mut self, second: u64) {
        let (year, month, day) = civil(second / 86_400);
        let time = second % 86_400;
        let parts = [
            (0, 4, year),
            (5, 2, month),
            (8, 2, day),
            (11, 2, time / 3600),
            (14, 2, time / 60 % 60),
            (17, 2, time % 60),
        ];
        for (start, length, number) in parts {
            digits(&mut self.text[start..start + length], number);
        }
    }
}

/// Year, month and day of a day since 1970. Counted in years that begin in March and in eras of 400 years: within one, every
/// leap day is the last day of its year.
fn civil(days: u64) -> (u64, u64, u64) {
    let days = days + 719_468; // since 0000-03-01
    let era = days / 146_097;
    let day_of_era = days % 146_097;
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 {
        month_from_march + 3
    } else {
        month_from_march - 9
    };
    (era * 400 + year_of_era + u64::from(month <= 2), month, day)
}

fn digits(place: &mut [u8], mut number: u64) {
    for digit in place.iter_mut().rev() {
        *digit = b'0' + (number % 10) as u8;
        number /= 10;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_rfc_3339_with_nanoseconds() {
        let mut timestamp = Timestamp::default();
        for (nanoseconds, text) in [
            (0, "1970-01-01T00:00:00.000000000Z"),
            (5, "1970-01-01T00:00:00.000000005Z"),
            (951_782_400_000_000_000, "2000-02-29T00:00:00.000000000Z"),
            (951_868_799_999_999_999, "2000-02-29T23:59:59.999999999Z"),
            (951_868_800_000_000_000, "2000-03-01T00:00:00.000000000Z"),
            (1_735_689_599_123_456_789, "2024-12-31T23:59:59.123456789Z"),
            (1_735_689_600_000_000_001, "2025-01-01T00:00:00.000000001Z"),
            (4_107_542_400_000_000_000, "2100-03-01T00:00:00.000000000Z"),
        ] {
            assert_eq!(timestamp.format(nanoseconds), text.as_bytes());
        }
    }
}
