package eventgraph

import "errors"

var (
	// ErrKeyUnknown: the key may exist, but no document at hand shows it.
	ErrKeyUnknown = errors.New("key not known here")
	// ErrKeyNotValid: the document at hand shows the key, but not for that time.
	ErrKeyNotValid = errors.New("key document not valid at that time")
	// ErrSignature: a required signature is absent or wrong. Final.
	ErrSignature = errors.New("bad or missing signature")
	// ErrTooLarge: over 64 KiB, or a field over its limit. Final.
	ErrTooLarge = errors.New("event too large")
	// ErrFormat: not an event of that room version. Final.
	ErrFormat = errors.New("not a well-formed event of this room version")
)
