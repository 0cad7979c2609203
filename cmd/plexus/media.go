package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"time"

	"github.com/plexus-p2p/plexus/node"
)

// mediaCommand shows how much is stored, or removes what was fetched from others.
func mediaCommand(ctx context.Context, args []string, out io.Writer) error {
	var asJSON, byUser bool
	var unused string
	dir, rest, err := adminFlags("media", args, func(f *flag.FlagSet) {
		f.BoolVar(&asJSON, "json", false, "print JSON")
		f.BoolVar(&byUser, "by-user", false, "of stats: what each user has uploaded and fetched")
		f.StringVar(&unused, "unused", "0s", "of purge: only what was not used since this `time`, or for so long")
	})
	if err != nil {
		return err
	}
	switch {
	case len(rest) == 1 && rest[0] == "stats":
		return mediaStats(ctx, dir, byUser, asJSON, out)
	case len(rest) == 1 && rest[0] == "purge":
		before, err := momentOf(unused, time.Now())
		if err != nil {
			return err
		}
		var removed node.MediaCount
		if err := ask(ctx, dir, http.MethodPost, "/media/purge?before="+strconv.FormatInt(before.UnixMilli(), 10), nil, &removed); err != nil {
			return err
		}
		return show(out, asJSON, removed, func(out io.Writer) error {
			_, err := fmt.Fprintf(out, "removed: %s\n", countOf(removed))
			return err
		})
	}
	return errors.New("usage: plexus media stats [--by-user] | purge [--unused TIME]")
}

func countOf(c node.MediaCount) string { return fmt.Sprintf("%d files, %s", c.Files, bytesOf(c.Bytes)) }

// bytesOf is a number of bytes for people.
func bytesOf(n int64) string {
	units := []string{"B", "KiB", "MiB", "GiB", "TiB"}
	v, i := float64(n), 0
	for ; v >= 1024 && i < len(units)-1; i++ {
		v /= 1024
	}
	if i == 0 {
		return fmt.Sprintf("%d B", n)
	}
	return fmt.Sprintf("%.1f %s", v, units[i])
}

func mediaStats(ctx context.Context, dir string, byUser, asJSON bool, out io.Writer) error {
	var stats node.MediaStats
	if err := ask(ctx, dir, http.MethodGet, "/media", nil, &stats); err != nil {
		return err
	}
	return show(out, asJSON, stats, func(out io.Writer) error {
		fmt.Fprintf(out, "uploaded here  %s\nfetched        %s\nthumbnails     %s\nawaited        %d uploads\n",
			countOf(stats.Local), countOf(stats.Remote), bytesOf(stats.Thumbnails), stats.Pending)
		if !byUser || len(stats.Users) == 0 {
			return nil
		}
		return table(out, func(row func(...any)) {
			row("USER", "UPLOADED", "FETCHED")
			for _, u := range stats.Users {
				row(u.User, countOf(u.Uploaded), countOf(u.Fetched))
			}
		})
	})
}
