// Command lan makes a LAN of N hosts on this machine, runs plexus on each, and either runs a command with
// their addresses in its environment or waits until it is interrupted. See scripts/lan.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/plexus-p2p/plexus/scripts/hosts"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	n := flag.Int("n", 2, "number of hosts")
	dir := flag.String("dir", "", "`folder` for the nodes' data and logs (default: a new temporary one)")
	binary := flag.String("plexus", "", "the plexus `binary` (default: built from this checkout)")
	flags := flag.String("flags", "", "further `flags` for plexus run, separated by spaces")
	flag.Usage = func() {
		fmt.Fprintln(flag.CommandLine.Output(), `usage: scripts/lan [flags] [-- COMMAND [ARG…]]

Makes N hosts on one bridge, each a network namespace with an address and no default route, and starts plexus on each.
Without COMMAND it says how to use them and waits for Ctrl-C. With COMMAND it runs that, with PLEXUS_LAN set to a JSON
array of {"namespace","addr","dir","node"} (node as in node.json), and ends with its exit code. It needs root.`)
		flag.PrintDefaults()
	}
	flag.Parse()
	code, err := run(ctx, *dir, *n, *binary, strings.Fields(*flags), flag.Args())
	if err != nil {
		fmt.Fprintln(os.Stderr, "lan:", err)
		code = 1
	}
	stop()
	os.Exit(code)
}

func run(ctx context.Context, dir string, n int, binary string, flags, command []string) (code int, err error) {
	if dir == "" {
		if dir, err = os.MkdirTemp("", "plexus-lan-"); err != nil {
			return 0, err
		}
	}
	if binary == "" {
		binary = filepath.Join(dir, "plexus")
		fmt.Fprintln(os.Stderr, "building plexus …")
		build := exec.CommandContext(ctx, "go", "build", "-o", binary, "./cmd/plexus")
		build.Stderr = os.Stderr
		if err := build.Run(); err != nil {
			return 0, fmt.Errorf("build plexus: %w", err)
		}
	}
	lan, err := hosts.New(ctx, dir, n)
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, lan.Close()) }()
	type entry struct {
		Namespace string `json:"namespace"`
		Addr      string `json:"addr"`
		Dir       string `json:"dir"`
		Node      any    `json:"node"`
	}
	var entries []entry
	for _, h := range lan.Hosts {
		f, err := h.Start(ctx, binary, flags...)
		if err != nil {
			return 0, err
		}
		entries = append(entries, entry{h.Namespace, h.Addr, h.Dir, f})
		fmt.Fprintf(os.Stderr, "%s  %s  client API %s inside; data %s\n", h.Namespace, h.Addr, f.ClientURL, h.Dir)
	}
	if len(command) == 0 {
		h := lan.Hosts[0]
		fmt.Fprintf(os.Stderr, "\nTry:  ip netns exec %s %s status --data %s\nCtrl-C ends all.\n", h.Namespace, binary, h.Dir)
		<-ctx.Done()
		return 0, nil
	}
	raw, err := json.Marshal(entries)
	if err != nil {
		return 0, err
	}
	cmd := exec.CommandContext(ctx, command[0], command[1:]...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.Env = append(os.Environ(), "PLEXUS_LAN="+string(raw))
	err = cmd.Run()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return exit.ExitCode(), nil
	}
	return 0, err
}
