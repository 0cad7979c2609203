package main

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"time"

	"golang.org/x/term"

	"github.com/plexus-p2p/plexus/eventgraph"
	"github.com/plexus-p2p/plexus/node"
)

// maxAnswer bounds what is read of a node's answer; a status line of a room takes some 300 bytes.
const maxAnswer = 64 << 20

// ask calls the running node over its admin socket and decodes the answer into v.
func ask(ctx context.Context, dir, method, path string, body, v any) error {
	return askLines(ctx, dir, method, path, body, func(in *json.Decoder) error { return in.Decode(v) })
}

// askLines is ask for an answer of several JSON values, which read decodes as they come.
func askLines(ctx context.Context, dir, method, path string, body any, read func(*json.Decoder) error) error {
	socket := filepath.Join(dir, "admin.sock")
	client := http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", socket)
	}}}
	defer client.CloseIdleConnections()
	raw, err := json.Marshal(body)
	if err != nil {
		return err
	}
	req, err := http.NewRequestWithContext(ctx, method, "http://plexus"+path, bytes.NewReader(raw))
	if err != nil {
		return err
	}
	answer, err := client.Do(req)
	if err != nil {
		return fmt.Errorf("no node is running on %s; start it with \"plexus run --data %s\" (%w)", dir, dir, err)
	}
	defer answer.Body.Close()
	in := json.NewDecoder(io.LimitReader(answer.Body, maxAnswer))
	if answer.StatusCode != http.StatusOK {
		var failure struct{ Error string }
		if err := in.Decode(&failure); err != nil {
			return fmt.Errorf("the node answered %s", answer.Status)
		}
		return errors.New(failure.Error)
	}
	return read(in)
}

// adminFlags parses --data and what define adds, anywhere among the other arguments. PLEXUS_DATA says which node is meant as it does
// for run.
func adminFlags(name string, args []string, define func(*flag.FlagSet)) (dir string, rest []string, err error) {
	f := flag.NewFlagSet("plexus "+name, flag.ContinueOnError)
	f.StringVar(&dir, "data", cmp.Or(os.Getenv("PLEXUS_DATA"), defaultDir()), "data `directory` of the running node")
	if define != nil {
		define(f)
	}
	for len(args) > 0 {
		if err := f.Parse(args); err != nil {
			return "", nil, err
		}
		if args = f.Args(); len(args) > 0 {
			rest, args = append(rest, args[0]), args[1:]
		}
	}
	return dir, rest, nil
}

func version(out io.Writer) error {
	_, err := fmt.Fprintf(out, "plexus %s %s %s/%s\n", node.Version, runtime.Version(), runtime.GOOS, runtime.GOARCH)
	return err
}

func status(ctx context.Context, args []string, out io.Writer) error {
	var asJSON bool
	dir, rest, err := adminFlags("status", args, func(f *flag.FlagSet) { f.BoolVar(&asJSON, "json", false, "print JSON") })
	if err != nil || len(rest) > 0 {
		return errors.Join(err, unexpected(rest))
	}
	var s node.Status
	if err := ask(ctx, dir, http.MethodGet, "/status", nil, &s); err != nil {
		return err
	}
	if asJSON {
		e := json.NewEncoder(out)
		e.SetIndent("", "  ")
		return e.Encode(s)
	}
	fmt.Fprintf(out, "server name  %s\npeer ID      %s\npeers        %d connected\nrooms        %d\n", s.ServerName, s.PeerID, len(s.Peers), len(s.Rooms))
	if off := time.Duration(s.ClockAheadMS) * time.Millisecond; off > 0 {
		fmt.Fprintf(out, "clock        %s ahead of most peers' clocks: set it right\n", off.Round(time.Second))
	} else if off < 0 {
		fmt.Fprintf(out, "clock        %s behind most peers' clocks: set it right\n", -off.Round(time.Second))
	}
	for _, server := range s.Compromised {
		fmt.Fprintf(out, "compromised  %s\n", compromised(server, s.ServerName))
	}
	for _, id := range slices.Sorted(maps.Keys(s.Rooms)) {
		r := s.Rooms[id]
		fmt.Fprintf(out, "  %s  version %s, %d extremities, state %.16s\n", id, r.Version, len(r.Extremities), r.StateHash)
	}
	for _, j := range s.Joining {
		of := ""
		if j.Expected > 0 {
			of = fmt.Sprintf(" of %d", j.Expected)
		}
		fmt.Fprintf(out, "  %s  being joined by %s: %d%s events of its state have come\n", j.Room, j.User, j.Arrived, of)
	}
	return nil
}

// compromised says what it means that a server has shown two certificates which contradict each other, and what to do.
func compromised(server, own eventgraph.ServerName) string {
	if server == own {
		return "this server: another device shows a certificate made with its identity key, so somebody has a copy of that key and can pass for you.\n" +
			"             Tell those you talk with, by another way than Matrix, and begin anew in another data directory"
	}
	return string(server) + ": it has shown two lists of its devices that contradict each other, so somebody else may hold its identity key.\n" +
		"             Only devices in both are believed. Ask its owner, by another way than Matrix; until then \"plexus block SERVER\" ends all dealings with it"
}

func peers(ctx context.Context, args []string, out io.Writer) error {
	dir, rest, err := adminFlags("peers", args, nil)
	switch {
	case err != nil:
		return err
	case len(rest) == 2 && rest[0] == "add":
		if err := ask(ctx, dir, http.MethodPost, "/peers", map[string]string{"addr": rest[1]}, &struct{}{}); err != nil {
			return fmt.Errorf("could not connect: %w", err)
		}
		_, err := fmt.Fprintln(out, "connected")
		return err
	case len(rest) > 0:
		return errors.New("usage: plexus peers [add MULTIADDR]")
	}
	var list []node.PeerStatus
	if err := ask(ctx, dir, http.MethodGet, "/peers", nil, &list); err != nil {
		return err
	}
	if len(list) == 0 {
		fmt.Fprintln(out, "no peer is connected; nodes on the same LAN find each other, others are added with \"plexus peers add MULTIADDR\"")
	}
	for _, p := range list {
		name := string(p.ServerName)
		if name == "" {
			name = "(name not known yet)"
		}
		fmt.Fprintf(out, "%s  %s  %s\n", p.PeerID, name, p.Addr)
	}
	return nil
}

// readPassword asks for it without echo on a terminal, else reads a line.
func readPassword(in io.Reader, out io.Writer) (string, error) {
	if f, ok := in.(*os.File); ok && term.IsTerminal(int(f.Fd())) {
		fmt.Fprint(out, "Password: ")
		raw, err := term.ReadPassword(int(f.Fd()))
		fmt.Fprintln(out)
		return string(raw), err
	}
	line, err := bufio.NewReader(io.LimitReader(in, 4096)).ReadString('\n')
	if err != nil && err != io.EOF {
		return "", err
	}
	if line = strings.TrimRight(line, "\r\n"); line == "" {
		return "", errors.New("no password on standard input")
	}
	return line, nil
}

func unexpected(rest []string) error {
	if len(rest) == 0 {
		return nil
	}
	return fmt.Errorf("unexpected argument %q; \"plexus help\" shows the usage", rest[0])
}
