package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net/http"

	"github.com/plexus-p2p/plexus/node"
	"github.com/plexus-p2p/plexus/node/clientapi"
)

const noticeUsage = "usage: plexus notice USER TEXT | --all TEXT   (TEXT in quotes, or --content JSON in its place; --txn ID: not again if it was sent)"

// notice tells users something in the name of the server.
func notice(ctx context.Context, args []string, out io.Writer) error {
	var asked node.NoticeRequest
	var asJSON bool
	var content string
	dir, rest, err := adminFlags("notice", args, func(f *flag.FlagSet) {
		f.BoolVar(&asJSON, "json", false, "print JSON")
		f.BoolVar(&asked.All, "all", false, "tell all people who have an account")
		f.StringVar(&content, "content", "", "the `JSON` content of the m.room.message, for other notices than text; with the msgtype m.server_notice it is pinned until the next")
		f.StringVar(&asked.TxnID, "txn", "", "an `ID` for this notice: repeated with the same one, it is not sent again")
	})
	if err != nil {
		return err
	}
	if !asked.All && len(rest) > 0 {
		asked.User, rest = rest[0], rest[1:]
	}
	switch {
	case !asked.All && asked.User == "", content == "" && len(rest) != 1, content != "" && len(rest) != 0:
		return errors.New(noticeUsage)
	case content == "":
		if asked.Text = rest[0]; asked.Text == "" {
			return errors.New("there is nothing to tell: the text is empty")
		}
	case !json.Valid([]byte(content)):
		return errors.New("what follows --content is not valid JSON")
	default:
		asked.Content = json.RawMessage(content)
	}
	var sent []clientapi.NoticeSent
	if err := ask(ctx, dir, http.MethodPost, "/notices", asked, &sent); err != nil {
		return err
	}
	failed := 0
	for _, one := range sent {
		if one.Error != "" {
			failed++
		}
	}
	err = show(out, asJSON, sent, func(out io.Writer) error {
		if len(sent) == 0 {
			fmt.Fprintln(out, "there is nobody to tell: there are no users")
		}
		for _, one := range sent {
			if one.Error != "" {
				fmt.Fprintf(out, "%s was not told: %s\n", one.User, printable(one.Error))
				continue
			}
			fmt.Fprintf(out, "%s was told: %s in room %s\n", one.User, one.Event, one.Room)
		}
		return nil
	})
	if err == nil && failed > 0 {
		err = fmt.Errorf("%d of %d were not told", failed, len(sent))
	}
	return err
}
