package auth

import (
	"net/netip"
	"strings"

	"github.com/plexus-p2p/plexus/eventgraph"
	"github.com/plexus-p2p/plexus/eventgraph/canonicaljson"
)

// ServerAllowed applies the content of m.room.server_acl to a server name (CS API, m.room.server_acl). Without such
// an event in the room (nil) everyone is allowed.
func ServerAllowed(aclContent []byte, server eventgraph.ServerName) bool {
	// 1.
	if aclContent == nil {
		return true
	}
	acl, err := canonicaljson.Canonicalize(aclContent, canonicaljson.Lenient)
	if err != nil {
		return false
	}
	host := strings.ToLower(withoutPort(string(server)))
	// 2.
	if v, _ := canonicaljson.Get(acl, "allow_ip_literals"); string(v) == "false" && isIPLiteral(host) {
		return false
	}
	// 3.
	if matchesAny(acl, "deny", host) {
		return false
	}
	// 4. and 5.
	return matchesAny(acl, "allow", host)
}

// withoutPort cuts the port off a server name (appendices, Server Name).
func withoutPort(name string) string {
	colon := strings.LastIndexByte(name, ':')
	if colon < 0 || strings.Trim(name[colon+1:], "0123456789") != "" {
		return name // no port: the last colon is of an IPv6 literal, and after that stands a bracket
	}
	return name[:colon]
}

func isIPLiteral(host string) bool {
	if strings.HasPrefix(host, "[") {
		return true
	}
	_, err := netip.ParseAddr(host)
	return err == nil
}

// matchesAny says whether host matches a glob in that list of the ACL; entries that are not strings match nothing.
func matchesAny(acl []byte, list, host string) bool {
	globs, _ := canonicaljson.Get(acl, list)
	entries, _ := canonicaljson.Elements(globs)
	for _, entry := range entries {
		if glob, ok := canonicaljson.String(entry); ok && globMatches(strings.ToLower(glob), host) {
			return true
		}
	}
	return false
}

// globMatches: "*" is any run of characters, "?" exactly one (appendices, Glob-style matching). Server names are ASCII,
// so bytes are characters. Only the last star is ever tried again, so the time is bounded by the product of the lengths.
func globMatches(glob, s string) bool {
	g, i := 0, 0
	star, resume := -1, 0
	for i < len(s) {
		switch {
		case g < len(glob) && glob[g] == '*':
			star, resume = g, i
			g++
		case g < len(glob) && (glob[g] == '?' || glob[g] == s[i]):
			g++
			i++
		case star >= 0:
			resume++
			g, i = star+1, resume
		default:
			return false
		}
	}
	return strings.Trim(glob[g:], "*") == ""
}
