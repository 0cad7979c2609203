// Command measure takes plexus's figures: it builds the binary, runs real processes on loopback, drives them as a Matrix client
// would, and prints a table in Markdown. What the machine itself needs (the floor) is measured in the same run: absolute
// figures move from machine to machine and from moment to moment, ratios to the floor less. scripts/bench runs it.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"time"
)

func main() {
	idle := flag.Duration("idle", 30*time.Second, "how `long` idle nodes are watched, each of two times")
	keep := flag.Bool("keep", false, "keep the binary and the data directories")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	ctx, cancel := context.WithTimeout(ctx, runLimit)
	err := run(ctx, *idle, *keep)
	cancel()
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

// runLimit ends a run that hangs.
const runLimit = 10 * time.Minute

func run(ctx context.Context, idle time.Duration, keep bool) error {
	dir, err := os.MkdirTemp("", "plexus-bench-")
	if err != nil {
		return err
	}
	if keep {
		fmt.Fprintln(os.Stderr, "bench: in", dir)
	} else {
		defer os.RemoveAll(dir)
	}
	b := &bench{dir: dir, binary: filepath.Join(dir, "plexus"), idle: idle}
	step("building")
	build := exec.CommandContext(ctx, "go", "build", "-trimpath", "-ldflags=-s -w", "-o", b.binary, "./cmd/plexus")
	build.Stderr = os.Stderr
	if err := build.Run(); err != nil {
		return fmt.Errorf("build: %w", err)
	}
	if err := b.all(ctx); err != nil {
		return err
	}
	fmt.Printf("%s, %s/%s, %d cores, %s; load of the machine before: %s\n\n", time.Now().Format(time.DateOnly), runtime.GOOS, runtime.GOARCH,
		runtime.NumCPU(), runtime.Version(), b.load)
	b.print(os.Stdout)
	return nil
}

var started = time.Now()

// step shows progress.
func step(format string, args ...any) {
	fmt.Fprintf(os.Stderr, "bench: %4.0f s  %s\n", time.Since(started).Seconds(), fmt.Sprintf(format, args...))
}

// loadAverage says how busy the machine is with other things.
func loadAverage() string {
	raw, err := os.ReadFile("/proc/loadavg")
	if err != nil {
		return "unknown"
	}
	first, _, _ := strings.Cut(string(raw), " ")
	return first
}
