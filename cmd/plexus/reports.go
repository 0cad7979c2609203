package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"net/http"
	"net/url"

	"github.com/plexus-p2p/plexus/node/clientapi"
)

// reports lists what users have reported, or deletes reports.
func reports(ctx context.Context, args []string, out io.Writer) error {
	var asJSON bool
	dir, rest, err := adminFlags("reports", args, func(f *flag.FlagSet) { f.BoolVar(&asJSON, "json", false, "print JSON") })
	if err != nil {
		return err
	}
	switch {
	case len(rest) > 1 && rest[0] == "delete":
		for _, id := range rest[1:] {
			if err := ask(ctx, dir, http.MethodDelete, "/reports/"+url.PathEscape(id), nil, &struct{}{}); err != nil {
				return err
			}
		}
		return show(out, asJSON, map[string][]string{"deleted": rest[1:]}, func(out io.Writer) error {
			_, err := fmt.Fprintln(out, "deleted")
			return err
		})
	case len(rest) > 0:
		return errors.New("usage: plexus reports [delete NUMBER…]")
	}
	var list []clientapi.ReportStatus
	if err := ask(ctx, dir, http.MethodGet, "/reports", nil, &list); err != nil {
		return err
	}
	return show(out, asJSON, list, func(out io.Writer) error {
		if len(list) == 0 {
			_, err := fmt.Fprintln(out, "nothing has been reported")
			return err
		}
		for _, r := range list {
			what := fmt.Sprintf("user %s", r.User)
			switch {
			case r.Event != "":
				what = fmt.Sprintf("event %s in room %s", r.Event, r.Room)
			case r.Room != "":
				what = fmt.Sprintf("room %s", r.Room)
			}
			fmt.Fprintf(out, "%d  %s  %s reports %s\n", r.ID, timeOf(r.TS), r.Reporter, printable(what))
			if r.Sender != "" {
				fmt.Fprintf(out, "    by %s: %s\n", printable(r.Sender), printable(r.Content))
			}
			if r.Reason != "" {
				fmt.Fprintf(out, "    reason: %s\n", printable(r.Reason))
			}
		}
		return nil
	})
}
