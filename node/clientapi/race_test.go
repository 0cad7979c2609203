//go:build race

package clientapi

// raceDetector: it takes memory of its own, and much of it.
const raceDetector = true
