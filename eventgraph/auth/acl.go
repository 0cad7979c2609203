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
	return aclContent == nil || ParseACL(aclContent).Allows(server)
}

// ACL is the content of an m.room.server_acl event, for many server names. It takes about as much memory as the content.
type ACL struct {
	noLiterals  bool
	allow, deny string // globs in lower case, a NUL, which no server name contains, behind each
}

// ParseACL reads the content of m.room.server_acl. What is no JSON object allows nobody.
func ParseACL(content []byte) *ACL {
	acl, err := canonicaljson.Canonicalize(content, canonicaljson.Lenient)
	if err != nil {
		return &ACL{}
	}
	literals, _ := canonicaljson.Get(acl, "allow_ip_literals")
	return &ACL{noLiterals: string(literals) == "false", allow: globs(acl, "allow"), deny: globs(acl, "deny")}
}

// globs is that list of the ACL, as in ACL; entries that are not strings match nothing.
func globs(acl []byte, list string) string {
	values, _ := canonicaljson.Get(acl, list)
	entries, _ := canonicaljson.Elements(values)
	var all strings.Builder
	for _, entry := range entries {
		if glob, ok := canonicaljson.String(entry); ok && !strings.Contains(glob, "\x00") {
			all.WriteString(strings.ToLower(glob))
			all.WriteByte(0)
		}
	}
	return all.String()
}

// Allows applies the ACL to a server name, by the steps of the CS API, m.room.server_acl; the first is of a room without one.
func (a *ACL) Allows(server eventgraph.ServerName) bool {
	host := strings.ToLower(withoutPort(string(server)))
	// 2.
	if a.noLiterals && isIPLiteral(host) {
		return false
	}
	// 3.
	if matchesAny(a.deny, host) {
		return false
	}
	// 4. and 5.
	return matchesAny(a.allow, host)
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

// matchesAny says whether host matches one of the globs.
func matchesAny(globs, host string) bool {
	for globs != "" {
		var glob string
		if glob, globs, _ = strings.Cut(globs, "\x00"); globMatches(glob, host) {
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
