package node

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"

	"github.com/plexus-p2p/plexus/node/clientapi"
)

// NoticeRequest is what "plexus notice" asks for: one user, or all; a text, or the content of an m.room.message.
type NoticeRequest struct {
	User    string          `json:"user,omitempty"`
	All     bool            `json:"all,omitempty"`
	Text    string          `json:"text,omitempty"`
	Content json.RawMessage `json:"content,omitempty"`
	TxnID   string          `json:"txn_id,omitempty"` // the same notice is not sent twice to anybody
}

// notice sends server notices.
func (n *Node) notice(ctx context.Context, asked NoticeRequest) ([]clientapi.NoticeSent, error) {
	switch {
	case asked.All == (asked.User != ""):
		return nil, errors.New("a notice is for one user, or for all")
	case (asked.Text == "") == (len(asked.Content) == 0):
		return nil, errors.New("a notice has a text, or content")
	}
	notice := clientapi.ServerNotice{Content: asked.Content, TxnID: asked.TxnID}
	if asked.Text != "" {
		var err error
		if notice.Content, err = json.Marshal(map[string]string{"msgtype": "m.text", "body": asked.Text}); err != nil {
			return nil, err
		}
	}
	if asked.All {
		return n.api.SendServerNotices(ctx, notice)
	}
	account, err := n.account(asked.User)
	if err != nil {
		return nil, err
	}
	if account.Deactivated {
		return nil, fmt.Errorf("%s has been deactivated, and cannot be used again", account.User)
	}
	sent, err := n.api.SendServerNotice(ctx, account.User, notice)
	if err != nil {
		return nil, err
	}
	return []clientapi.NoticeSent{*sent}, nil
}

// adminNotices adds what "plexus notice" asks for.
func (n *Node) adminNotices(mux *http.ServeMux) {
	mux.HandleFunc("POST /notices", func(w http.ResponseWriter, r *http.Request) {
		var asked NoticeRequest
		err := json.NewDecoder(http.MaxBytesReader(w, r.Body, maxAdminBody)).Decode(&asked)
		var sent []clientapi.NoticeSent
		if err == nil {
			sent, err = n.notice(r.Context(), asked)
		}
		answerAdmin(w, sent, err)
	})
}
