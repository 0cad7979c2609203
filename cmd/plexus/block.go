package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"

	"github.com/plexus-p2p/plexus/eventgraph"
)

// block blocks a server, or lists those that are blocked.
func block(ctx context.Context, args []string, out io.Writer) error {
	dir, rest, err := adminFlags("block", args, nil)
	switch {
	case err != nil:
		return err
	case len(rest) > 1:
		return errors.New("usage: plexus block [SERVER]")
	case len(rest) == 1:
		if err := ask(ctx, dir, http.MethodPost, "/blocked", map[string]string{"server_name": rest[0]}, &struct{}{}); err != nil {
			return err
		}
		_, err := fmt.Fprintf(out, "%s is blocked: it gets no answer, and nothing is sent to it; what is said in rooms shared with it may still reach it through others\n", rest[0])
		return err
	}
	var servers []eventgraph.ServerName
	if err := ask(ctx, dir, http.MethodGet, "/blocked", nil, &servers); err != nil {
		return err
	}
	if len(servers) == 0 {
		fmt.Fprintln(out, "no server is blocked")
	}
	for _, s := range servers {
		fmt.Fprintln(out, s)
	}
	return nil
}

// unblock ends block.
func unblock(ctx context.Context, args []string, out io.Writer) error {
	dir, rest, err := adminFlags("unblock", args, nil)
	if err != nil {
		return err
	}
	if len(rest) != 1 {
		return errors.New("usage: plexus unblock SERVER")
	}
	if err := ask(ctx, dir, http.MethodDelete, "/blocked/"+url.PathEscape(rest[0]), nil, &struct{}{}); err != nil {
		return err
	}
	_, err = fmt.Fprintf(out, "%s is not blocked any more\n", rest[0])
	return err
}
