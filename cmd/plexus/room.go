package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/plexus-p2p/plexus/eventgraph"
	"github.com/plexus-p2p/plexus/node"
)

const roomUsage = "usage: plexus room list | state ROOM [TYPE [KEY]] | leave ROOM [USER] | purge ROOM --before TIME|EVENT   (TIME as 2006-01-02, 2006-01-02T15:04 or 720h ago)"

// room shows rooms and acts on them.
func room(ctx context.Context, args []string, out, errOut io.Writer) error {
	var asJSON bool
	var before string
	dir, rest, err := adminFlags("room", args, func(f *flag.FlagSet) {
		f.BoolVar(&asJSON, "json", false, "print JSON")
		f.StringVar(&before, "before", "", "of purge: remove what was sent before this `time or event`")
	})
	if err != nil {
		return err
	}
	if before != "" && (len(rest) == 0 || rest[0] != "purge") {
		return errors.New(roomUsage)
	}
	switch {
	case len(rest) == 1 && rest[0] == "list":
		return listRooms(ctx, dir, asJSON, out)
	case len(rest) >= 2 && len(rest) <= 4 && rest[0] == "state":
		return showState(ctx, dir, rest[1], rest[2:], asJSON, out)
	case len(rest) >= 2 && len(rest) <= 3 && rest[0] == "leave":
		return leaveRoom(ctx, dir, rest[1], rest[2:], asJSON, out)
	case len(rest) == 2 && rest[0] == "purge" && before != "":
		return purgeRoom(ctx, dir, rest[1], before, asJSON, out, errOut)
	}
	return errors.New(roomUsage)
}

func listRooms(ctx context.Context, dir string, asJSON bool, out io.Writer) error {
	var rooms []node.RoomInfo
	if err := ask(ctx, dir, http.MethodGet, "/rooms", nil, &rooms); err != nil {
		return err
	}
	return show(out, asJSON, rooms, func(out io.Writer) error {
		if len(rooms) == 0 {
			_, err := fmt.Fprintln(out, "there are no rooms here")
			return err
		}
		return table(out, func(row func(...any)) {
			row("ROOM", "VERSION", "MEMBERS", "HERE", "SERVERS", "EXTREMITIES", "EVENTS", "NAME")
			for _, r := range rooms {
				name := r.Name
				if name == "" {
					name = r.Alias
				}
				row(r.Room, r.Version, r.Members, len(r.LocalUsers), r.Servers, r.Extremities, r.Events, name)
			}
		})
	})
}

func showState(ctx context.Context, dir, name string, which []string, asJSON bool, out io.Writer) error {
	query := url.Values{}
	for i, part := range which {
		query.Set([]string{"type", "key"}[i], part)
	}
	var state node.RoomState
	if err := ask(ctx, dir, http.MethodGet, "/rooms/"+url.PathEscape(name)+"/state?"+query.Encode(), nil, &state); err != nil {
		return err
	}
	return show(out, asJSON, state, func(out io.Writer) error {
		for _, e := range state.State {
			key := ""
			if e.Key != "" {
				key = " " + strconv.Quote(e.Key)
			}
			fmt.Fprintf(out, "%s%s  by %s, %s\n    %s\n", printable(e.Type), key, printable(e.Sender), timeOf(e.TS), printable(string(e.Content)))
		}
		if len(state.State) == 0 {
			fmt.Fprintln(out, "there is no such state")
		}
		if state.LeftOut > 0 {
			fmt.Fprintf(out, "and %d more; name a type to see less\n", state.LeftOut)
		}
		return nil
	})
}

func leaveRoom(ctx context.Context, dir, name string, users []string, asJSON bool, out io.Writer) error {
	query := url.Values{"user": users}
	var answer struct {
		Left []eventgraph.UserID `json:"left"`
	}
	if err := ask(ctx, dir, http.MethodPost, "/rooms/"+url.PathEscape(name)+"/leave?"+query.Encode(), nil, &answer); err != nil {
		return err
	}
	return show(out, asJSON, answer, func(out io.Writer) error {
		for _, user := range answer.Left {
			fmt.Fprintf(out, "%s has left\n", printable(user))
		}
		return nil
	})
}

// momentOf reads a time: a day, a minute, or how long ago.
func momentOf(s string, now time.Time) (time.Time, error) {
	if ago, err := time.ParseDuration(s); err == nil && ago >= 0 {
		return now.Add(-ago), nil
	}
	for _, layout := range []string{"2006-01-02", "2006-01-02T15:04", "2006-01-02T15:04:05", time.RFC3339} {
		if t, err := time.ParseInLocation(layout, s, time.Local); err == nil {
			return t, nil
		}
	}
	return time.Time{}, fmt.Errorf("%q is no time: write 2006-01-02, 2006-01-02T15:04, or 720h for 30 days ago", s)
}

// purgeRoom asks for a purge, and says on errOut how far it is.
func purgeRoom(ctx context.Context, dir, name, before string, asJSON bool, out, errOut io.Writer) error {
	query := url.Values{}
	if strings.HasPrefix(before, "$") {
		query.Set("event", before)
	} else {
		t, err := momentOf(before, time.Now())
		if err != nil {
			return err
		}
		query.Set("time", strconv.FormatInt(t.UnixMilli(), 10))
	}
	var last node.PurgeLine
	err := askLines(ctx, dir, http.MethodPost, "/rooms/"+url.PathEscape(name)+"/purge?"+query.Encode(), nil, func(in *json.Decoder) error {
		for !last.Done && last.Error == "" {
			var line node.PurgeLine
			if err := in.Decode(&line); err != nil {
				return fmt.Errorf("the purge was ended after %d events; the same command goes on with it: %w", last.Purged, err)
			}
			if last = line; !last.Done && last.Error == "" {
				fmt.Fprintf(errOut, "%d events looked at, %d purged\n", last.Looked, last.Purged)
			}
		}
		if last.Error != "" {
			return errors.New(last.Error)
		}
		return nil
	})
	if err != nil {
		return err
	}
	return show(out, asJSON, last.PurgeProgress, func(out io.Writer) error {
		_, err := fmt.Fprintf(out, "%d of %d events purged from this device; other servers keep what they have\n", last.Purged, last.Looked)
		return err
	})
}
