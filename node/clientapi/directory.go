package clientapi

import (
	"cmp"
	"encoding/json"
	"slices"
	"strings"

	"github.com/plexus-p2p/plexus/eventgraph"
	"github.com/plexus-p2p/plexus/store"
)

// Bounds of a search for users.
const (
	usualFound = 10
	mostFound  = 100
	// maxSearched memberships are looked at, each of which may cost reading an event. Beyond, the answer is limited.
	maxSearched = 20_000
)

// foundUser is a result of a search.
type foundUser struct {
	User        eventgraph.UserID `json:"user_id"`
	DisplayName string            `json:"display_name,omitempty"`
	AvatarURL   string            `json:"avatar_url,omitempty"`
}

// matches says whether the ID (without its server) or the display name contains the term, which is in lower case.
func (u foundUser) matches(term string) bool {
	return strings.Contains(strings.ToLower(u.User.Localpart()), term) ||
		strings.Contains(strings.ToLower(u.DisplayName), term) || strings.HasPrefix(strings.ToLower(string(u.User)), term)
}

// named says whether the term is the whole ID, localpart or display name.
func (u foundUser) named(term string) bool {
	return strings.EqualFold(u.User.Localpart(), term) || strings.EqualFold(u.DisplayName, term) || strings.EqualFold(string(u.User), term)
}

// searchUsers is POST /user_directory/search: among those who share a room with the caller or are in a published one. Other local accounts are
// found by who knows their name: that there is one is told to nobody who only tries letters.
func (a *API) searchUsers(q *request) (any, error) {
	var body struct {
		Term  *string `json:"search_term"`
		Limit *int    `json:"limit"`
	}
	if err := q.decode(&body); err != nil {
		return nil, err
	}
	if body.Term == nil {
		return nil, missingParam("search_term is missing.")
	}
	limit := usualFound
	if body.Limit != nil {
		limit = min(max(*body.Limit, 1), mostFound)
	}
	term := strings.ToLower(strings.TrimSpace(*body.Term))

	found := map[eventgraph.UserID]foundUser{}
	local := map[eventgraph.UserID]foundUser{}
	looked := 0
	err := a.Store.View(func(r *store.Reader) error {
		seen := map[eventgraph.UserID]bool{q.user: true}
		err := r.Accounts(func(account *store.Account) (bool, error) {
			if seen[account.User] || account.Deactivated {
				return true, nil
			}
			profile, err := r.Profile(account.User)
			if err != nil {
				return false, err
			}
			u := profileResult(account.User, profile)
			if u.named(term) {
				found[u.User] = u
			}
			local[u.User] = u
			return true, nil
		})
		if err != nil {
			return err
		}
		rooms, err := joinedTo(r, q.user)
		if err != nil {
			return err
		}
		published, err := r.PublishedRooms()
		if err != nil {
			return err
		}
		for _, room := range append(rooms, published...) {
			err := r.MembersOf(room, func(m *store.Member) (bool, error) {
				if m.Membership != "join" || seen[m.User] {
					return true, nil
				}
				seen[m.User] = true
				if u, ok := local[m.User]; ok { // as they call themselves everywhere, not in a room that the caller may not see
					if u.matches(term) {
						found[m.User] = u
					}
					return true, nil
				}
				if looked++; looked > maxSearched {
					return false, nil
				}
				event, err := r.Event(m.Event)
				if err != nil {
					return false, err
				}
				if u := profileResult(m.User, profileOfMember(event.Event)); u.matches(term) {
					found[u.User] = u
				}
				return true, nil
			})
			if err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return nil, err
	}

	results := make([]foundUser, 0, len(found))
	for _, u := range found {
		results = append(results, u)
	}
	slices.SortFunc(results, func(x, y foundUser) int {
		exact := func(u foundUser) int {
			if u.named(term) {
				return 0
			}
			return 1
		}
		return cmp.Or(cmp.Compare(exact(x), exact(y)), cmp.Compare(x.User, y.User))
	})
	limited := looked > maxSearched || len(results) > limit
	return map[string]any{"results": results[:min(limit, len(results))], "limited": limited}, nil
}

func profileResult(user eventgraph.UserID, profile map[string]json.RawMessage) foundUser {
	u := foundUser{User: user}
	// What is no string stays empty.
	_ = json.Unmarshal(profile["displayname"], &u.DisplayName)
	_ = json.Unmarshal(profile["avatar_url"], &u.AvatarURL)
	return u
}
