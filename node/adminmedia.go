package node

import (
	"cmp"
	"context"
	"fmt"
	"net/http"
	"slices"
	"strconv"

	"github.com/plexus-p2p/plexus/eventgraph"
	"github.com/plexus-p2p/plexus/store"
)

// MediaStats is what "plexus media stats" shows: files and bytes.
type MediaStats struct {
	Local      MediaCount `json:"local"`   // uploaded here
	Remote     MediaCount `json:"remote"`  // fetched from other servers
	Pending    int        `json:"pending"` // IDs that wait for their content
	Thumbnails int64      `json:"thumbnail_bytes"`
	// Users is what each local user has uploaded, and fetched first; who has most comes first.
	Users []UserMedia `json:"users"`
}

// MediaCount counts files.
type MediaCount struct {
	Files int   `json:"files"`
	Bytes int64 `json:"bytes"`
}

func (c *MediaCount) add(bytes int64) { c.Files, c.Bytes = c.Files+1, c.Bytes+bytes }

// UserMedia is the part of a user.
type UserMedia struct {
	User     eventgraph.UserID `json:"user_id"`
	Uploaded MediaCount        `json:"uploaded"`
	Fetched  MediaCount        `json:"fetched"`
}

// MediaStats counts the media held here.
func (n *Node) MediaStats() (*MediaStats, error) {
	stats := &MediaStats{Users: []UserMedia{}}
	users := map[eventgraph.UserID]*UserMedia{} // local accounts, of which there are few
	err := n.store.View(func(r *store.Reader) (err error) {
		if _, _, stats.Thumbnails, err = r.MediaUsage(""); err != nil {
			return err
		}
		return r.AllMedia(func(m *store.Media) (bool, error) {
			if m.Pending() {
				stats.Pending++
				return true, nil
			}
			user := users[m.User]
			if user == nil {
				user = &UserMedia{User: m.User}
				users[m.User] = user
			}
			if m.Uploaded() {
				stats.Local.add(m.Size)
				user.Uploaded.add(m.Size)
			} else {
				stats.Remote.add(m.Size)
				user.Fetched.add(m.Size)
			}
			return true, nil
		})
	})
	for _, user := range users {
		stats.Users = append(stats.Users, *user)
	}
	slices.SortFunc(stats.Users, func(a, b UserMedia) int {
		return cmp.Or(cmp.Compare(b.Uploaded.Bytes+b.Fetched.Bytes, a.Uploaded.Bytes+a.Fetched.Bytes), cmp.Compare(a.User, b.User))
	})
	return stats, err
}

// PurgeMedia removes what was fetched from other servers and not used since before (ms); a client that asks for it has it fetched again. When
// media were used last is known to the day.
func (n *Node) PurgeMedia(ctx context.Context, before int64) (removed MediaCount, err error) {
	err = n.media.Remove(ctx, func(m *store.Media) bool { return !m.Uploaded() && !m.Pending() && m.UsedTS < before }, removed.add)
	return removed, err
}

// adminMedia adds what "plexus media" asks for.
func (n *Node) adminMedia(mux *http.ServeMux) {
	mux.HandleFunc("GET /media", func(w http.ResponseWriter, r *http.Request) {
		stats, err := n.MediaStats()
		answerAdmin(w, stats, err)
	})
	mux.HandleFunc("POST /media/purge", func(w http.ResponseWriter, r *http.Request) {
		var removed MediaCount
		before, err := strconv.ParseInt(r.URL.Query().Get("before"), 10, 64)
		if err == nil {
			removed, err = n.PurgeMedia(r.Context(), before)
		} else {
			err = fmt.Errorf("before is not a time in milliseconds")
		}
		answerAdmin(w, removed, err)
	})
}
