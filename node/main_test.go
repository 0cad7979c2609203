package node_test

import (
	"testing"

	"go.uber.org/goleak"
)

// TestMain: a node that is closed leaves no goroutine.
func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }
