//! Questions and answers of DNS (RFC 1035), as far as a lookup of addresses needs them. Pure.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

pub const A: u16 = 1;
pub const AAAA: u16 = 28;

const CNAME: u16 = 5;
const OPT: u16 = 41;
const INTERNET: u16 = 1;

const HEADER_BYTES: usize = 12;

/// What an answer may be by UDP (EDNS, RFC 6891), so that it is not cut into fragments (RFC 9715).
pub const UDP_BYTES: u16 = 1232;

/// Of aliases that lead to an address.
const MAX_ALIASES: usize = 16;

/// What a server said.
#[derive(Debug, PartialEq, Eq)]
pub enum Answer {
    /// And for how many seconds they hold.
    Addresses(Vec<IpAddr>, u32),
    /// There is no such name.
    NoName,
    /// There is more than fits: ask again by TCP.
    Cut,
    /// The server could not, or would not.
    Failed,
}

/// A question for one type of a name's records, as `canonical_name` gives it.
pub fn question(id: u16, name: &str, record_type: u16) -> Vec<u8> {
    const RECURSION_DESIRED: u16 = 1 << 8;
    let mut message = Vec::with_capacity(HEADER_BYTES + name.len() + 17);
    // One question, and one record beside it: EDNS.
    for number in [id, RECURSION_DESIRED, 1, 0, 0, 1] {
        message.extend(number.to_be_bytes());
    }
    for label in name.split('.') {
        message.push(label.len() as u8);
        message.extend(label.as_bytes());
    }
    message.push(0);
    message.extend(record_type.to_be_bytes());
    message.extend(INTERNET.to_be_bytes());
    message.push(0);
    message.extend(OPT.to_be_bytes());
    message.extend(UDP_BYTES.to_be_bytes());
    message.extend([0; 6]);
    message
}

/// What a message says to that question; None if it is no answer to it.
pub fn answer(message: &[u8], id: u16, name: &str, record_type: u16) -> Option<Answer> {
    const RESPONSE: u16 = 1 << 15;
    const TRUNCATED: u16 = 1 << 9;
    const NAME_ERROR: u16 = 3;
    let mut reader = Reader { message, at: 0 };
    let [their_id, flags, questions, answers, _, _] = reader.numbers()?;
    if their_id != id || flags & RESPONSE == 0 || questions != 1 {
        return None;
    }
    let asked = reader.name()?;
    if asked != name || reader.numbers()? != [record_type, INTERNET] {
        return None;
    }
    match flags & 0xf {
        0 => {}
        NAME_ERROR => return Some(Answer::NoName),
        _ => return Some(Answer::Failed),
    }
    if flags & TRUNCATED != 0 {
        return Some(Answer::Cut);
    }
    let records = reader.records(answers)?;
    let (found, seconds) = addresses(&records, name, record_type);
    Some(Answer::Addresses(found, seconds))
}

struct Record {
    owner: String,
    seconds: u32,
    data: Data,
}

enum Data {
    Address(IpAddr),
    Alias(String),
    Other,
}

/// The addresses of a name, or of what it is an alias of, and for how long all that led to them holds.
fn addresses(records: &[Record], name: &str, record_type: u16) -> (Vec<IpAddr>, u32) {
    let (mut owner, mut seconds) = (name, u32::MAX);
    for _ in 0..MAX_ALIASES {
        let (found, times): (Vec<IpAddr>, Vec<u32>) = records
            .iter()
            .filter(|record| record.owner == owner)
            .filter_map(|record| match record.data {
                Data::Address(address) if address.is_ipv4() == (record_type == A) => Some((address, record.seconds)),
                _ => None,
            })
            .unzip();
        if !found.is_empty() {
            return (found, times.into_iter().fold(seconds, u32::min));
        }
        let alias = records.iter().find_map(|record| match &record.data {
            Data::Alias(target) if record.owner == owner => Some((target, record.seconds)),
            _ => None,
        });
        match alias {
            Some((target, holds)) => (owner, seconds) = (target, seconds.min(holds)),
            None => break,
        }
    }
    (Vec::new(), 0)
}

struct Reader<'a> {
    message: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    fn bytes(&mut self, count: usize) -> Option<&'a [u8]> {
        let bytes = self.message.get(self.at..self.at.checked_add(count)?)?;
        self.at += count;
        Some(bytes)
    }

    fn numbers<const N: usize>(&mut self) -> Option<[u16; N]> {
        let mut numbers = [0; N];
        for number in &mut numbers {
            *number = u16::from_be_bytes(self.bytes(2)?.try_into().ok()?);
        }
        Some(numbers)
    }

    /// A name in lower case, with what it has in common with an earlier one.
    fn name(&mut self) -> Option<String> {
        const POINTER: u8 = 0b1100_0000;
        /// A name has at most so many labels: more pointers than that go in a circle.
        const MAX_STEPS: usize = 128;
        let mut name = String::new();
        let mut elsewhere: Option<usize> = None;
        for _ in 0..MAX_STEPS {
            let at = elsewhere.unwrap_or(self.at);
            let length = *self.message.get(at)?;
            let next = if length & POINTER == POINTER {
                let low = *self.message.get(at + 1)?;
                if elsewhere.is_none() {
                    self.at += 2;
                }
                elsewhere = Some(usize::from(length & !POINTER) << 8 | usize::from(low));
                continue;
            } else if length & POINTER != 0 {
                return None;
            } else {
                at + 1 + usize::from(length)
            };
            let label = self.message.get(at + 1..next)?;
            match elsewhere {
                None => self.at = next,
                Some(_) => elsewhere = Some(next),
            }
            if label.is_empty() {
                return Some(name);
            }
            if !name.is_empty() {
                name.push('.');
            }
            // What is no letter of ours equals no name that was asked for.
            name.extend(label.iter().map(|byte| char::from(byte.to_ascii_lowercase())));
        }
        None
    }

    fn records(&mut self, count: u16) -> Option<Vec<Record>> {
        (0..count).map(|_| self.record()).collect()
    }

    fn record(&mut self) -> Option<Record> {
        let owner = self.name()?;
        let [record_type, class, high, low, length] = self.numbers()?;
        let seconds = u32::from(high) << 16 | u32::from(low);
        let end = self.at.checked_add(length.into())?;
        let data = match (class, record_type) {
            (INTERNET, A) => {
                Data::Address(Ipv4Addr::from(<[u8; 4]>::try_from(self.bytes(length.into())?).ok()?).into())
            }
            (INTERNET, AAAA) => {
                Data::Address(Ipv6Addr::from(<[u8; 16]>::try_from(self.bytes(length.into())?).ok()?).into())
            }
            (INTERNET, CNAME) => Data::Alias(self.name()?),
            _ => {
                self.bytes(length.into())?;
                Data::Other
            }
        };
        (self.at == end).then_some(Record { owner, seconds, data })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An answer to a question: its flags, and records (owner as it is written, type, data).
    fn respond(question: &[u8], flags: u16, records: &[(&[u8], u16, &[u8])]) -> Vec<u8> {
        let end = question.len() - 11;
        let mut message = question[..end].to_vec();
        message[2..4].copy_from_slice(&(0x8000 | flags).to_be_bytes());
        message[6..8].copy_from_slice(&(records.len() as u16).to_be_bytes());
        message[10..12].copy_from_slice(&[0, 0]);
        for (owner, record_type, data) in records {
            message.extend(*owner);
            message.extend(record_type.to_be_bytes());
            message.extend(INTERNET.to_be_bytes());
            message.extend(60_u32.to_be_bytes());
            message.extend((data.len() as u16).to_be_bytes());
            message.extend(*data);
        }
        message
    }

    /// A pointer to the question's name.
    const ASKED: &[u8] = &[0xc0, 12];

    const OTHER: &[u8] = b"\x05other\x04test\x00";

    #[test]
    fn a_question_is_what_rfc_1035_says() {
        let message = question(0x1234, "a.test", A);
        assert_eq!(
            message,
            b"\x12\x34\x01\x00\x00\x01\x00\x00\x00\x00\x00\x01\x01a\x04test\x00\x00\x01\x00\x01\x00\x00\x29\x04\xd0\0\0\0\0\0\0"
        );
    }

    #[test]
    fn addresses_are_read_also_behind_an_alias() {
        let asked = question(7, "name.test", A);
        let direct = respond(&asked, 0, &[(ASKED, A, &[10, 0, 0, 1]), (ASKED, A, &[10, 0, 0, 2])]);
        let expected = Answer::Addresses(vec![[10, 0, 0, 1].into(), [10, 0, 0, 2].into()], 60);
        assert_eq!(answer(&direct, 7, "name.test", A), Some(expected));
        let alias = respond(&asked, 0, &[(ASKED, CNAME, OTHER), (OTHER, A, &[10, 0, 0, 3])]);
        let expected = Answer::Addresses(vec![[10, 0, 0, 3].into()], 60);
        assert_eq!(answer(&alias, 7, "name.test", A), Some(expected));
        let asked = question(7, "name.test", AAAA);
        let six = respond(&asked, 0, &[(ASKED, AAAA, &[0; 16])]);
        let expected = Answer::Addresses(vec![IpAddr::from([0_u16; 8])], 60);
        assert_eq!(answer(&six, 7, "name.test", AAAA), Some(expected));
    }

    #[test]
    fn what_was_not_asked_for_is_not_taken() {
        let asked = question(7, "name.test", A);
        let foreign = respond(&asked, 0, &[(OTHER, A, &[10, 0, 0, 1])]);
        assert_eq!(answer(&foreign, 7, "name.test", A), Some(Answer::Addresses(vec![], 0)));
        let good = respond(&asked, 0, &[(ASKED, A, &[10, 0, 0, 1])]);
        assert_eq!(answer(&good, 8, "name.test", A), None, "another id");
        assert_eq!(answer(&good, 7, "nome.test", A), None, "another name");
        assert_eq!(answer(&good, 7, "name.test", AAAA), None, "another type");
        assert_eq!(answer(&asked, 7, "name.test", A), None, "a question");
        let circle = respond(&asked, 0, &[(ASKED, CNAME, ASKED)]);
        assert_eq!(answer(&circle, 7, "name.test", A), Some(Answer::Addresses(vec![], 0)));
    }

    #[test]
    fn a_server_may_say_no() {
        let asked = question(7, "name.test", A);
        for (flags, expected) in [
            (3, Answer::NoName),
            (2, Answer::Failed),
            (5, Answer::Failed),
            (0x200, Answer::Cut),
        ] {
            assert_eq!(answer(&respond(&asked, flags, &[]), 7, "name.test", A), Some(expected));
        }
    }

    #[test]
    fn no_message_is_read_beyond_its_end_or_for_ever() {
        let asked = question(7, "name.test", A);
        let good = respond(&asked, 0, &[(ASKED, CNAME, OTHER), (OTHER, A, &[10, 0, 0, 3])]);
        for length in 0..good.len() {
            let _ = answer(&good[..length], 7, "name.test", A);
        }
        for place in 0..good.len() {
            for value in [0, 1, 12, 0x3f, 0x40, 0xc0, 0xff] {
                let mut wrong = good.clone();
                wrong[place] = value;
                let _ = answer(&wrong, 7, "name.test", A);
            }
        }
        let itself = respond(&asked, 0, &[(&[0xc0, 27], A, &[10, 0, 0, 1])]);
        assert_eq!(answer(&itself, 7, "name.test", A), None);
    }
}
