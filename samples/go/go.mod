module sample

go 1.23
