package main

import (
	"crypto/rand"
	"fmt"
	"os"
	"strings"
)

// senderLocalpart is the bridge's own user; ghosts are those whose names begin with ghostPrefix.
const (
	senderLocalpart = "ircbridge"
	ghostPrefix     = "irc_"
	aliasPrefix     = "irc_"
)

type registration struct{ asToken, hsToken string }

// writeRegistration makes a registration with fresh tokens, for the homeserver and for this bridge.
func writeRegistration(path, url string) error {
	text := fmt.Sprintf(`# Registration of the IRC bridge. Whoever reads this file can act as the bridge: keep it to yourself.
id: irc-bridge
url: %s
as_token: %s
hs_token: %s
sender_localpart: %s
rate_limited: false
namespaces:
  users:
    - exclusive: true
      regex: "@%s.*"
  aliases:
    - exclusive: true
      regex: "#%s.*"
  rooms: []
`, url, rand.Text(), rand.Text(), senderLocalpart, ghostPrefix, aliasPrefix)
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	if _, err = f.WriteString(text); err != nil {
		f.Close()
		return err
	}
	return f.Close()
}

// readRegistration finds the tokens in a file that writeRegistration made: one a line, so no YAML is needed.
func readRegistration(path string) (r registration, err error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return r, fmt.Errorf("%w (irc-bridge -generate %s makes one)", err, path)
	}
	for line := range strings.Lines(string(text)) {
		name, value, _ := strings.Cut(strings.TrimSpace(line), ": ")
		switch name {
		case "as_token":
			r.asToken = value
		case "hs_token":
			r.hsToken = value
		}
	}
	if r.asToken == "" || r.hsToken == "" {
		return r, fmt.Errorf("%s has no as_token or no hs_token", path)
	}
	return r, nil
}
