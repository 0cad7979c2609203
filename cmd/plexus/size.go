package main

import (
	"errors"
	"math"
	"strconv"
	"strings"
)

// size is a flag of bytes: a number, also with K, M or G for powers of 1024.
type size int64

func (s *size) String() string {
	n, unit := int64(*s), ""
	for _, u := range []string{"K", "M", "G"} {
		if n == 0 || n%1024 != 0 {
			break
		}
		n, unit = n/1024, u
	}
	return strconv.FormatInt(n, 10) + unit
}

func (s *size) Set(v string) error {
	digits := strings.TrimRight(v, "KMG")
	factor := int64(1)
	switch v[len(digits):] {
	case "":
	case "K":
		factor = 1 << 10
	case "M":
		factor = 1 << 20
	case "G":
		factor = 1 << 30
	default:
		return errors.New("a size is a number of bytes, or one with K, M or G")
	}
	n, err := strconv.ParseInt(digits, 10, 64)
	if err != nil || n <= 0 || n > math.MaxInt64/factor {
		return errors.New("a size is a number of bytes, or one with K, M or G")
	}
	*s = size(n * factor)
	return nil
}
