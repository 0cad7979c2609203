//go:build !race

package clientapi

const raceDetector = false
