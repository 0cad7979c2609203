package clientapi

import "github.com/plexus-p2p/plexus/store"

// whois is GET /admin/whois/{userId}: users may look up themselves. There are no administrators among them.
func (a *API) whois(q *request) (any, error) {
	if err := ownUser(q); err != nil {
		return nil, err
	}
	devices := map[store.DeviceID]any{}
	err := a.Store.View(func(r *store.Reader) error {
		return r.Devices(q.user, func(d *store.Device) (bool, error) {
			sessions := []any{}
			if d.Dehydrated == "" {
				connection := map[string]any{"ip": d.LastSeenIP, "last_seen": d.LastSeenTS}
				sessions = append(sessions, map[string]any{"connections": []any{connection}})
			}
			devices[d.ID] = map[string]any{"sessions": sessions}
			return true, nil
		})
	})
	return map[string]any{"user_id": q.user, "devices": devices}, err
}
