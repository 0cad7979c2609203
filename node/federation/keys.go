package federation

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/plexus-p2p/plexus/eventgraph"
	"github.com/plexus-p2p/plexus/node/rooms"
	"github.com/plexus-p2p/plexus/store"
)

const (
	// maxQueriedKeys bounds the servers of one key/v2/query, asked and answered: at some KiB each well below maxAnswer.
	maxQueriedKeys = 256
	// maxKeyHints is how many other servers are asked for third servers' documents.
	maxKeyHints = 4
	// keyFetches is how many servers are asked for their own documents at one time.
	keyFetches = 8
	// notaryTimeout is how long an answer to key/v2/query may wait for a newer document.
	notaryTimeout = 5 * time.Second
)

func (f *Federation) keyRoutes(r *router) {
	r.addOpen(http.MethodGet, "/_matrix/key/v2/server", f.serveKeyDocument)
	r.addOpen(http.MethodGet, "/_matrix/key/v2/query/{serverName}", f.serveKeyQueryOne)
	r.addOpen(http.MethodPost, "/_matrix/key/v2/query", f.serveKeyQuery)
}

func (f *Federation) serveKeyDocument(*request) (any, error) {
	return json.RawMessage(f.KeyDocument().Raw), nil
}

type keyCriteria struct {
	MinimumValidUntilTS int64 `json:"minimum_valid_until_ts"`
}

// keyQuery is the body of POST /_matrix/key/v2/query: which keys of which servers.
type keyQuery struct {
	ServerKeys map[string]map[eventgraph.KeyID]keyCriteria `json:"server_keys"`
}

// keyAnswer is its answer.
type keyAnswer struct {
	ServerKeys []json.RawMessage `json:"server_keys"`
}

func (f *Federation) serveKeyQueryOne(q *request) (any, error) {
	ts := f.Now().UnixMilli()
	if s := q.URL.Query().Get("minimum_valid_until_ts"); s != "" {
		var err error
		if ts, err = strconv.ParseInt(s, 10, 64); err != nil {
			return nil, fail(http.StatusBadRequest, "M_INVALID_PARAM", "minimum_valid_until_ts is not a number")
		}
	}
	return f.notarise(q.Context(), map[string]int64{q.path("serverName"): ts})
}

func (f *Federation) serveKeyQuery(q *request) (any, error) {
	var body keyQuery
	if err := q.decode(&body); err != nil {
		return nil, err
	}
	if len(body.ServerKeys) > maxQueriedKeys {
		return nil, fail(http.StatusBadRequest, "M_INVALID_PARAM", "too many servers in one query")
	}
	now := f.Now().UnixMilli()
	wanted := map[string]int64{}
	for server, keys := range body.ServerKeys {
		wanted[server] = 0
		for _, c := range keys {
			wanted[server] = max(wanted[server], c.MinimumValidUntilTS)
		}
		if wanted[server] == 0 {
			wanted[server] = now
		}
	}
	return f.notarise(q.Context(), wanted)
}

// notarise hands on the documents held of the servers, signed by us too (SS API, Querying Keys Through Another Server). One that
// is not valid until the time asked for is fetched anew only from a connected peer: strangers must not make us dial.
func (f *Federation) notarise(ctx context.Context, wanted map[string]int64) (any, error) {
	ctx, cancel := context.WithTimeout(ctx, notaryTimeout)
	defer cancel()
	answer := keyAnswer{ServerKeys: []json.RawMessage{}}
	for _, name := range slices.Sorted(maps.Keys(wanted)) {
		server, err := eventgraph.ParseServerName(name)
		if err != nil {
			continue
		}
		d := f.document(server)
		if (d == nil || d.ValidUntilTS < wanted[name]) && server != f.server {
			if fresh, err := f.fetchOwn(ctx, server); err == nil {
				d = fresh
			}
		}
		if d == nil {
			continue
		}
		signed, err := eventgraph.SignJSON(d.Raw, f.Key)
		if err != nil {
			return nil, fmt.Errorf("sign key document of %s: %w", server, err)
		}
		answer.ServerKeys = append(answer.ServerKeys, signed)
	}
	return answer, nil
}

// fetchOwn asks the server's connected peers for its document.
func (f *Federation) fetchOwn(ctx context.Context, server eventgraph.ServerName) (*eventgraph.KeyDocument, error) {
	release, err := take(ctx, f.asking)
	if err != nil {
		return nil, err
	}
	defer release()
	err = fmt.Errorf("%w: %s", ErrUnreachable, server)
	for _, peer := range f.peers.of(server) {
		var d *eventgraph.KeyDocument
		if d, err = f.identify(ctx, peer); err == nil && d.ServerName == server {
			return d, nil
		}
	}
	return nil, err
}

// ensureKeys obtains the key documents that events need, and stores them: each from the server's own peer if it is connected, the
// others by key/v2/query at hints (servers that hold the events, most likely the room's). It returns an error if some are still missing.
func (f *Federation) ensureKeys(ctx context.Context, needed []rooms.KeyNeeded, hints []eventgraph.ServerName) error {
	missing := f.lacking(needed)
	if len(missing) == 0 {
		return nil
	}
	f.keysFromOwners(ctx, missing)
	asked := 0
	for _, hint := range f.connectedFirst(hints) {
		if missing = f.lacking(missing); len(missing) == 0 {
			return nil
		}
		if asked == maxKeyHints || ctx.Err() != nil {
			break
		}
		asked++
		for part := range slices.Chunk(missing, maxQueriedKeys) { // the members of a large room may have a server each
			if err := f.keysFromNotary(ctx, hint, part); err != nil {
				f.Log.Debug("no key documents from server", "server", hint, "err", err)
				break
			}
		}
	}
	if missing = f.lacking(missing); len(missing) > 0 {
		return fmt.Errorf("%d keys are not to be had, the first of %s: %w", len(missing), missing[0].Server, eventgraph.ErrKeyUnknown)
	}
	return nil
}

// lacking keeps what the store does not satisfy, once for each server and key, with the latest time.
func (f *Federation) lacking(needed []rooms.KeyNeeded) []rooms.KeyNeeded {
	type key struct {
		server eventgraph.ServerName
		id     eventgraph.KeyID
	}
	latest := map[key]int64{}
	for _, n := range needed {
		k := key{n.Server, n.ID}
		latest[k] = max(latest[k], n.TS)
	}
	var missing []rooms.KeyNeeded
	for k, ts := range latest {
		if _, err := f.Rooms.Key(k.server, k.id, ts, true); err != nil {
			missing = append(missing, rooms.KeyNeeded{Server: k.server, ID: k.id, TS: ts})
		}
	}
	slices.SortFunc(missing, func(a, b rooms.KeyNeeded) int {
		if c := strings.Compare(string(a.Server), string(b.Server)); c != 0 {
			return c
		}
		return strings.Compare(string(a.ID), string(b.ID))
	})
	return missing
}

// keysFromOwners stores what is in memory of the servers already, and asks those that are connected.
func (f *Federation) keysFromOwners(ctx context.Context, missing []rooms.KeyNeeded) {
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(keyFetches)
	seen := map[eventgraph.ServerName]bool{f.server: true}
	for _, n := range missing {
		if seen[n.Server] {
			continue
		}
		seen[n.Server] = true
		group.Go(func() error {
			if d := f.document(n.Server); d != nil {
				f.keep(ctx, d, "") // logs
				if len(f.lacking([]rooms.KeyNeeded{n})) == 0 {
					return nil
				}
			}
			if d, err := f.fetchOwn(ctx, n.Server); err == nil {
				f.keep(ctx, d, "") // logs
			}
			return nil
		})
	}
	group.Wait()
}

// keysFromNotary asks one server for the documents of others.
func (f *Federation) keysFromNotary(ctx context.Context, notary eventgraph.ServerName, missing []rooms.KeyNeeded) error {
	asked := keyQuery{ServerKeys: map[string]map[eventgraph.KeyID]keyCriteria{}}
	for _, n := range missing {
		keys := asked.ServerKeys[string(n.Server)]
		if keys == nil {
			if len(asked.ServerKeys) == maxQueriedKeys {
				continue
			}
			keys = map[eventgraph.KeyID]keyCriteria{}
			asked.ServerKeys[string(n.Server)] = keys
		}
		keys[n.ID] = keyCriteria{n.TS}
	}
	var answer keyAnswer
	if err := f.do(ctx, notary, http.MethodPost, "/_matrix/key/v2/query", asked, &answer); err != nil {
		return err
	}
	var failed error
	var given []*eventgraph.KeyDocument
	for _, raw := range answer.ServerKeys[:min(len(answer.ServerKeys), 2*maxQueriedKeys)] {
		d, err := ownSignaturesOnly(raw)
		if err != nil {
			failed = errors.Join(failed, err)
			continue
		}
		if _, ok := asked.ServerKeys[string(d.ServerName)]; !ok {
			continue // what was not asked for could fill the store
		}
		given = append(given, d)
	}
	return errors.Join(failed, f.keepAll(ctx, given))
}

// keptTogether is how many documents are stored in one write: with their certificates some KiB each, of the megabyte that fits.
const keptTogether = 64

// keepAll is keep for many documents. Those of servers of which none is held are stored in few writes; they count as they are.
func (f *Federation) keepAll(ctx context.Context, given []*eventgraph.KeyDocument) error {
	var failed error
	for part := range slices.Chunk(given, keptTogether) {
		first := map[eventgraph.ServerName]*eventgraph.KeyDocument{}
		for _, d := range part {
			if held, err := f.storedDocument(d.ServerName); err == nil && held == nil && first[d.ServerName] == nil {
				first[d.ServerName] = d
			}
		}
		_, err := f.Store.Update(ctx, func(tx *store.Tx) error {
			for _, d := range part {
				if first[d.ServerName] != d {
					continue
				}
				if err := tx.PutKeyDocument(d); err != nil {
					return err
				}
			}
			return nil
		})
		for _, d := range part {
			if err == nil && first[d.ServerName] == d {
				f.peers.adopt(d, "")
			} else if _, err := f.keep(ctx, d, ""); err != nil {
				failed = errors.Join(failed, err)
			}
		}
	}
	return failed
}

// ownSignaturesOnly parses a document that a notary hands on, without the notaries' signatures, which would add up with each hand.
func ownSignaturesOnly(raw []byte) (*eventgraph.KeyDocument, error) {
	if len(raw) > maxKeyDocument {
		return nil, errTooLong
	}
	var object map[string]json.RawMessage
	var signatures map[string]json.RawMessage
	var name string
	if err := json.Unmarshal(raw, &object); err != nil {
		return nil, err
	}
	if err := json.Unmarshal(object["server_name"], &name); err != nil {
		return nil, fmt.Errorf("server_name: %w", err)
	}
	if err := json.Unmarshal(object["signatures"], &signatures); err != nil {
		return nil, fmt.Errorf("signatures: %w", err)
	}
	own, err := marshal(map[string]json.RawMessage{name: signatures[name]})
	if err != nil {
		return nil, err
	}
	object["signatures"] = own
	if raw, err = marshal(object); err != nil {
		return nil, err
	}
	return eventgraph.ParseKeyDocument(raw)
}

// connectedFirst orders servers so that those that are connected come first; without ourselves, each once.
func (f *Federation) connectedFirst(servers []eventgraph.ServerName) []eventgraph.ServerName {
	var here, away []eventgraph.ServerName
	for _, s := range servers {
		switch {
		case s == f.server || slices.Contains(here, s) || slices.Contains(away, s):
		case f.peers.isConnected(s):
			here = append(here, s)
		default:
			away = append(away, s)
		}
	}
	return append(here, away...)
}

// maxKeysOf bounds how many keys of one server an event can make us ask for: it may carry signatures under any number of IDs.
const maxKeysOf = 4

// keysOf lists the keys that the events' required signatures are made with.
func keysOf(events ...*eventgraph.Event) []rooms.KeyNeeded {
	var all []rooms.KeyNeeded
	for _, e := range events {
		for _, server := range e.RequiredSigners() {
			ids := e.SignedBy(server)
			for _, id := range ids[:min(len(ids), maxKeysOf)] {
				all = append(all, rooms.KeyNeeded{Server: server, ID: id, TS: e.OriginServerTS()})
			}
		}
	}
	return all
}

// verifySignatures checks the event's signatures, with key documents fetched where they are missing.
func (f *Federation) verifySignatures(ctx context.Context, e *eventgraph.Event, hints ...eventgraph.ServerName) error {
	err := e.VerifySignatures(f.Rooms)
	if errors.Is(err, eventgraph.ErrKeyUnknown) || errors.Is(err, eventgraph.ErrKeyNotValid) {
		if err := f.ensureKeys(ctx, keysOf(e), hints); err != nil {
			return err
		}
		err = e.VerifySignatures(f.Rooms)
	}
	return err
}
