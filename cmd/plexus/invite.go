package main

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"strings"
	"time"

	"golang.org/x/term"
	"rsc.io/qr"

	"github.com/plexus-p2p/plexus/node"
)

// qrBorder is the light margin around a QR code, in modules. The standard asks for 4; readers make do with 2, and the widest link
// still fits into 80 columns.
const qrBorder = 2

// invite makes a link, lists those there are, or revokes one.
func invite(ctx context.Context, args []string, out io.Writer) error {
	var about, room, revoke string
	var list, picture bool
	var life time.Duration
	dir, rest, err := adminFlags("invite", args, func(f *flag.FlagSet) {
		f.StringVar(&about, "user", "", "the link is of this local `user`; default the only one")
		f.StringVar(&room, "room", "", "the link is of this `room`, an ID or a local alias")
		f.DurationVar(&life, "expires", 0, "how `long` the link is valid (default 168h, a week)")
		f.BoolVar(&picture, "qr", true, "show the link as a QR code too")
		f.BoolVar(&list, "list", false, "list the links that are valid")
		f.StringVar(&revoke, "revoke", "", "end the link with this `ID`, as --list shows it")
	})
	switch {
	case err != nil || len(rest) > 0:
		return errors.Join(err, unexpected(rest))
	case about != "" && room != "":
		return errors.New("a link is of a user or of a room, not of both")
	case room != "" && !strings.HasPrefix(room, "!") && !strings.HasPrefix(room, "#"):
		return fmt.Errorf("a room is named by its ID (!…) or an alias (#…), not %q", room)
	case list:
		return listInvites(ctx, dir, out)
	case revoke != "":
		if err := ask(ctx, dir, http.MethodDelete, "/invites/"+url.PathEscape(revoke), nil, &struct{}{}); err != nil {
			return err
		}
		_, err := fmt.Fprintln(out, "revoked")
		return err
	}
	var answer struct {
		Link   string
		Invite node.InviteStatus
	}
	question := map[string]any{"about": about + room, "lifetime_ms": life.Milliseconds()}
	if err := ask(ctx, dir, http.MethodPost, "/invites", question, &answer); err != nil {
		return err
	}
	if picture {
		code, err := qr.Encode(answer.Link, qr.L)
		if err != nil {
			return fmt.Errorf("QR code: %w", err)
		}
		if _, err := out.Write(drawQR(code.Size, code.Black, isTerminal(out))); err != nil {
			return err
		}
	}
	_, err = fmt.Fprintf(out, "%s\n\nWho has this link is welcome here until %s. On the other device:  plexus join 'LINK'\nTo end it:  plexus invite --revoke %s\n",
		answer.Link, answer.Invite.Expires.Local().Format("2 January 2006 15:04"), answer.Invite.ID)
	return err
}

func listInvites(ctx context.Context, dir string, out io.Writer) error {
	var links []node.InviteStatus
	if err := ask(ctx, dir, http.MethodGet, "/invites", nil, &links); err != nil {
		return err
	}
	if len(links) == 0 {
		_, err := fmt.Fprintln(out, "no invite link is valid")
		return err
	}
	for _, l := range links {
		if _, err := fmt.Fprintf(out, "%s  until %s  used by %d  %s\n", l.ID, l.Expires.Local().Format("2006-01-02 15:04"), l.Devices, l.For); err != nil {
			return err
		}
	}
	return nil
}

// join acts on an invite link.
func join(ctx context.Context, args []string, out io.Writer) error {
	var user string
	dir, rest, err := adminFlags("join", args, func(f *flag.FlagSet) {
		f.StringVar(&user, "user", "", "the local `user` that joins, if the link is of a room")
	})
	if err != nil {
		return err
	}
	if len(rest) != 1 {
		return errors.New("usage: plexus join LINK [--user NAME]   (put the link in quotes: it holds &)")
	}
	var done node.Joined
	if err := ask(ctx, dir, http.MethodPost, "/join", map[string]string{"link": rest[0], "user": user}, &done); err != nil {
		return err
	}
	switch done.Membership {
	case "join":
		_, err = fmt.Fprintf(out, "joined %s\n", done.Room)
	case "knock":
		_, err = fmt.Fprintf(out, "asked to be let into %s; somebody there has to say yes\n", done.Room)
	default:
		_, err = fmt.Fprintf(out, "connected; %s can be invited to a chat now\n", done.User)
	}
	return err
}

// drawQR draws a code with half blocks, two rows of modules in a line of text. On a terminal the colours are given, so that it is dark on
// light whatever the terminal's own are; elsewhere the light modules are drawn, for dark screens.
func drawQR(size int, black func(x, y int) bool, terminal bool) []byte {
	var b bytes.Buffer
	light := func(x, y int) bool { return y < size+qrBorder && !black(x, y) } // black is false outside of the code
	for y := -qrBorder; y < size+qrBorder; y += 2 {
		if terminal {
			b.WriteString("\x1b[97;40m")
		}
		for x := -qrBorder; x < size+qrBorder; x++ {
			switch top, bottom := light(x, y), light(x, y+1); {
			case top && bottom:
				b.WriteString("█")
			case top:
				b.WriteString("▀")
			case bottom:
				b.WriteString("▄")
			default:
				b.WriteString(" ")
			}
		}
		if terminal {
			b.WriteString("\x1b[0m")
		}
		b.WriteByte('\n')
	}
	return b.Bytes()
}

func isTerminal(out io.Writer) bool {
	f, ok := out.(*os.File)
	return ok && term.IsTerminal(int(f.Fd()))
}
