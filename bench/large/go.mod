module wherry.dev/bench/large

go 1.24
