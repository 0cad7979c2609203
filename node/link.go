package node

import (
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strings"

	"github.com/plexus-p2p/plexus/eventgraph"
)

// A Link is an invite link: a matrix: URI (spec, Appendices, Matrix URI scheme) of a user or a room, which any client can open, with custom
// query items by which a plexus node finds the inviter and is welcome there:
//
//	matrix:u/alice:k51…?action=chat&plexus.peer=12D3…&plexus.addr=/ip4/10.0.0.7/udp/4001/quic-v1&plexus.token=…
//	matrix:roomid/…?action=join&via=k51…&plexus.peer=…&plexus.addr=…&plexus.token=…
//
// Who has the link has the token.
type Link struct {
	User  eventgraph.UserID       // either a user
	Room  eventgraph.RoomID       // or a room
	Via   []eventgraph.ServerName // servers in the room
	Peer  eventgraph.PeerID       // the inviter's device
	Addrs []string                // multiaddrs at which it may be reached, without /p2p/ID
	Token string
}

const (
	// maxLink bounds a link that is read.
	maxLink = 4 << 10
	// maxLinkAddrs keep a link small enough for a QR code in a terminal of 80 columns.
	maxLinkAddrs = 3
	// maxLinkParts bounds the servers and addresses of a link that is read.
	maxLinkParts = 16

	linkPeer, linkAddr, linkToken = "plexus.peer", "plexus.addr", "plexus.token"
)

// String is the link as a matrix: URI.
func (l Link) String() string {
	var b strings.Builder
	if l.User != "" {
		b.WriteString("matrix:u/" + url.PathEscape(strings.TrimPrefix(string(l.User), "@")) + "?action=chat")
	} else {
		b.WriteString("matrix:roomid/" + url.PathEscape(strings.TrimPrefix(string(l.Room), "!")) + "?action=join")
	}
	item := func(name, value string) {
		// What a query may hold as it is (RFC 3986 section 3.4) stays readable, and short.
		b.WriteString("&" + name + "=" + strings.NewReplacer("%2F", "/", "%3A", ":").Replace(url.QueryEscape(value)))
	}
	for _, s := range l.Via {
		item("via", string(s))
	}
	item(linkPeer, string(l.Peer))
	for _, a := range l.Addrs {
		item(linkAddr, a)
	}
	item(linkToken, l.Token)
	return b.String()
}

// ParseLink reads an invite link. What it does not know in the query is left out, as the spec says.
func ParseLink(s string) (Link, error) {
	var l Link
	if len(s) > maxLink {
		return l, errors.New("the link is too long")
	}
	rest, ok := cutPrefixFold(strings.TrimSpace(s), "matrix:")
	if !ok {
		return l, errors.New("an invite link begins with \"matrix:\"")
	}
	rest, _, _ = strings.Cut(rest, "#")
	path, query, _ := strings.Cut(rest, "?")
	kind, id, ok := strings.Cut(path, "/")
	id, err := url.PathUnescape(id)
	if !ok || err != nil {
		return l, errors.New("the link names neither a user nor a room")
	}
	switch kind {
	case "u":
		l.User, err = eventgraph.ParseUserID("@" + id)
	case "roomid":
		l.Room, err = eventgraph.ParseRoomID("!" + id)
	default:
		err = errors.New("the link names neither a user nor a room by its ID")
	}
	if err != nil {
		return Link{}, err
	}
	values, err := url.ParseQuery(query)
	if err != nil {
		return Link{}, fmt.Errorf("the link's query: %w", err)
	}
	for _, via := range values["via"] {
		if server, err := eventgraph.ParseServerName(via); err == nil && len(l.Via) < maxLinkParts {
			l.Via = append(l.Via, server)
		}
	}
	l.Peer, l.Token = eventgraph.PeerID(values.Get(linkPeer)), values.Get(linkToken)
	l.Addrs = values[linkAddr]
	l.Addrs = l.Addrs[:min(len(l.Addrs), maxLinkParts)]
	if l.Peer.PublicKey() == nil || l.Token == "" {
		return Link{}, errors.New("the link is no invite of a plexus node: it names no device, or has no token")
	}
	return l, nil
}

// cutPrefixFold is strings.CutPrefix without regard to case, as schemes of URIs are read (RFC 3986 section 3.1).
func cutPrefixFold(s, prefix string) (string, bool) {
	if len(s) < len(prefix) || !strings.EqualFold(s[:len(prefix)], prefix) {
		return s, false
	}
	return s[len(prefix):], true
}

// linkAddrs picks from a node's addresses those for a link: one of each network, then others; none that others cannot use, unless
// there are no others. all are in the transport's order, the most useful first, and end in /p2p/ID.
func linkAddrs(all []string) []string {
	addrs := make([]string, 0, len(all))
	for _, a := range all {
		addrs = append(addrs, a[:max(strings.LastIndex(a, "/p2p/"), 0)]) // a circuit's address names the relay before
	}
	ofOthers := slices.DeleteFunc(slices.Clone(addrs), func(a string) bool {
		return strings.HasPrefix(a, "/ip4/127.") || strings.HasPrefix(a, "/ip6/::1/") || strings.HasPrefix(a, "/ip6/fe80:") || strings.HasPrefix(a, "/ip6zone/")
	})
	if len(ofOthers) == 0 {
		ofOthers = addrs
	}
	var first, then []string
	networks := map[string]bool{}
	for _, a := range ofOthers {
		parts := strings.SplitN(a, "/", 4) // "", ip4, address, rest
		host := strings.Join(parts[:min(len(parts), 3)], "/")
		if networks[host] {
			then = append(then, a)
		} else {
			networks[host] = true
			first = append(first, a)
		}
	}
	picked := append(first, then...)
	circuit := slices.IndexFunc(picked, func(a string) bool { return strings.Contains(a, "/p2p-circuit") })
	if circuit >= maxLinkAddrs {
		picked[maxLinkAddrs-1] = picked[circuit] // for who can reach none of the others
	}
	return picked[:min(len(picked), maxLinkAddrs)]
}
