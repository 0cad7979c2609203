package main

import (
	"context"
	"strings"
	"testing"
	"time"
)

func TestChat(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	var out strings.Builder
	if err := chat(ctx, t.TempDir(), &out); err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(out.String(), "heard each other") {
		t.Errorf("it printed %q", out.String())
	}
}
