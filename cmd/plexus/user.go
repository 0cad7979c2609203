package main

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"text/tabwriter"
	"time"
	"unicode"

	"github.com/plexus-p2p/plexus/node"
	"github.com/plexus-p2p/plexus/node/clientapi"
)

// show prints v as JSON, or what words prints.
func show(out io.Writer, asJSON bool, v any, words func(io.Writer) error) error {
	if asJSON {
		e := json.NewEncoder(out)
		e.SetIndent("", "  ")
		return e.Encode(v)
	}
	return words(out)
}

// table prints rows of cells in columns, each as printable.
func table(out io.Writer, rows func(row func(cells ...any))) error {
	w := tabwriter.NewWriter(out, 0, 8, 2, ' ', 0)
	rows(func(cells ...any) {
		for i, cell := range cells {
			if i > 0 {
				fmt.Fprint(w, "\t")
			}
			fmt.Fprint(w, printable(fmt.Sprint(cell)))
		}
		fmt.Fprintln(w)
	})
	return w.Flush()
}

// timeOf is a time of so many milliseconds for people; "never" for 0.
func timeOf(ms int64) string {
	if ms == 0 {
		return "never"
	}
	return time.UnixMilli(ms).Local().Format("2006-01-02 15:04")
}

const userUsage = "usage: plexus user list | add NAME | reset-password NAME [--generate] [--keep-devices] | disable NAME | enable NAME"

// user manages accounts.
func user(ctx context.Context, args []string, in io.Reader, out io.Writer) error {
	var asJSON, generate, keep bool
	dir, rest, err := adminFlags("user", args, func(f *flag.FlagSet) {
		f.BoolVar(&asJSON, "json", false, "print JSON")
		f.BoolVar(&generate, "generate", false, "of reset-password: make a password and print it")
		f.BoolVar(&keep, "keep-devices", false, "of reset-password: devices stay logged in")
	})
	if err != nil {
		return err
	}
	if len(rest) == 1 && rest[0] == "list" {
		return listUsers(ctx, dir, asJSON, out)
	}
	if len(rest) != 2 {
		return errors.New(userUsage)
	}
	name := rest[1]
	var answer struct {
		node.UserAnswer
		Password string `json:"password,omitempty"`
	}
	path, said := "/users/"+url.PathEscape(name), ""
	switch rest[0] {
	case "add":
		var password string
		if password, err = readPassword(in, out); err == nil {
			err = ask(ctx, dir, http.MethodPost, "/users", map[string]string{"name": name, "password": password}, &answer)
		}
	case "reset-password":
		password := rand.Text()
		if generate {
			answer.Password = password
		} else if password, err = readPassword(in, out); err != nil {
			return err
		}
		err = ask(ctx, dir, http.MethodPut, path+"/password", map[string]any{"password": password, "logout": !keep}, &answer)
		said = " has another password, and is logged out everywhere"
		if keep {
			said = " has another password; who is logged in stays so"
		}
		if generate {
			said += ":\n" + password
		}
	case "disable":
		err = ask(ctx, dir, http.MethodPut, path+"/disabled", map[string]bool{"disabled": true}, &answer)
		said = " is disabled: nobody can log in, and those who are logged in can do nothing until \"plexus user enable\""
	case "enable":
		err = ask(ctx, dir, http.MethodPut, path+"/disabled", map[string]bool{"disabled": false}, &answer)
		said = " is enabled, and whoever was logged in is so again"
	default:
		return errors.New(userUsage)
	}
	if err != nil {
		return err
	}
	if !answer.Changed {
		said = " was so already: nothing has changed"
	}
	return show(out, asJSON, answer, func(out io.Writer) error {
		_, err := fmt.Fprintf(out, "%s%s\n", answer.User, said)
		return err
	})
}

func listUsers(ctx context.Context, dir string, asJSON bool, out io.Writer) error {
	var users []clientapi.AccountStatus
	if err := ask(ctx, dir, http.MethodGet, "/users", nil, &users); err != nil {
		return err
	}
	return show(out, asJSON, users, func(out io.Writer) error {
		if len(users) == 0 {
			_, err := fmt.Fprintln(out, "there are no users; \"plexus user add NAME\" makes one")
			return err
		}
		return table(out, func(row func(...any)) {
			row("USER", "SINCE", "LAST SEEN", "DEVICES", "ROOMS", "")
			for _, u := range users {
				note := ""
				switch {
				case u.Deactivated:
					note = "deactivated"
				case u.Disabled:
					note = "disabled"
				}
				row(u.User, timeOf(u.CreatedTS), timeOf(u.LastSeenTS), u.Devices, u.Rooms, note)
			}
		})
	})
}

// device lists or deletes the devices of a user.
func device(ctx context.Context, args []string, out io.Writer) error {
	var asJSON bool
	dir, rest, err := adminFlags("device", args, func(f *flag.FlagSet) { f.BoolVar(&asJSON, "json", false, "print JSON") })
	if err != nil {
		return err
	}
	switch {
	case len(rest) == 2 && rest[0] == "list":
		var devices []clientapi.DeviceStatus
		if err := ask(ctx, dir, http.MethodGet, "/users/"+url.PathEscape(rest[1])+"/devices", nil, &devices); err != nil {
			return err
		}
		return show(out, asJSON, devices, func(out io.Writer) error {
			if len(devices) == 0 {
				_, err := fmt.Fprintln(out, "no device is logged in")
				return err
			}
			return table(out, func(row func(...any)) {
				row("DEVICE", "SINCE", "LAST SEEN", "FROM", "NAME")
				for _, d := range devices {
					name := d.DisplayName
					if d.Dehydrated {
						name += " (dehydrated)"
					}
					row(d.ID, timeOf(d.CreatedTS), timeOf(d.LastSeenTS), d.LastSeenIP, name)
				}
			})
		})
	case len(rest) >= 3 && rest[0] == "delete":
		var answer node.UserAnswer
		if err := ask(ctx, dir, http.MethodPost, "/users/"+url.PathEscape(rest[1])+"/devices/delete", map[string]any{"devices": rest[2:]}, &answer); err != nil {
			return err
		}
		return show(out, asJSON, answer, func(out io.Writer) error {
			_, err := fmt.Fprintf(out, "logged out and deleted: %s\n", strings.Join(rest[2:], ", "))
			return err
		})
	}
	return errors.New("usage: plexus device list USER | delete USER DEVICE…")
}

// printable is text that others chose, without what a terminal would act on, or what shows it in another order than it has. Names of devices, users
// and rooms are such text too: hardly a character is forbidden in them.
func printable[T ~string](s T) string {
	return strings.Map(func(r rune) rune {
		if unicode.IsControl(r) || unicode.Is(unicode.Bidi_Control, r) {
			return '�'
		}
		return r
	}, string(s))
}
