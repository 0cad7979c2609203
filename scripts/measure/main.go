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
	"strings"
	"syscall"
	"time"
)

func main() {
	idle := flag.Duration("idle", 30*time.Second, "how `long` idle nodes are watched, each of two times")
	together := flag.Duration("together", 0, "how `long` two idle connected peers are watched once more, from five minutes later on, for their traffic; 10m holds one meeting")
	keep := flag.Bool("keep", false, "keep the binary and the data directories")
	mesh := idleMesh{}
	meshed := flag.Bool("idle-mesh", false, "instead of all else: an idle node that shares rooms with connected peers, on hosts of network namespaces; needs root")
	flag.IntVar(&mesh.rooms, "rooms", 1000, "how many `rooms` with -idle-mesh")
	flag.IntVar(&mesh.peers, "peers", 20, "how many `peers` with -idle-mesh")
	flag.DurationVar(&mesh.settle, "settle", 16*time.Minute, "how `long` the nodes go on before they count as idle, with -idle-mesh")
	flag.DurationVar(&mesh.watch, "watch", 5*time.Minute, "how `long` the node is watched, with -idle-mesh")
	bare := flag.Bool("bare", false, "do nothing but listen: what a Go program needs")
	client := flag.Bool("as-client", false, "for -idle-mesh: do what is on standard input")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	ctx, cancel := context.WithTimeout(ctx, runLimit+mesh.settle+mesh.watch+settleTogether+*together)
	var err error
	if *bare {
		err = serveNothing(ctx)
	} else if *client {
		err = asClient(ctx, os.Stdin, os.Stdout)
	} else {
		err = run(ctx, *keep, func(b *bench) error {
			if *meshed {
				mesh.binary = b.binary
				return mesh.run(ctx, b.dir)
			}
			b.idle, b.together = *idle, *together
			return b.table(ctx)
		})
	}
	cancel()
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

// runLimit ends a run that hangs.
const runLimit = 25 * time.Minute

// run builds plexus and has it measured.
func run(ctx context.Context, keep bool, measure func(*bench) error) error {
	dir, err := os.MkdirTemp("", "plexus-bench-")
	if err != nil {
		return err
	}
	if keep {
		fmt.Fprintln(os.Stderr, "bench: in", dir)
	} else {
		defer os.RemoveAll(dir)
	}
	b := &bench{dir: dir, binary: filepath.Join(dir, "plexus")}
	step("building")
	build := exec.CommandContext(ctx, "go", "build", "-trimpath", "-ldflags=-s -w", "-o", b.binary, "./cmd/plexus")
	build.Stderr = os.Stderr
	if err := build.Run(); err != nil {
		return fmt.Errorf("build: %w", err)
	}
	return measure(b)
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
