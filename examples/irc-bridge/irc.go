package main

import (
	"bufio"
	"context"
	"fmt"
	"net"
	"strings"
	"time"
	"unicode/utf8"
)

const (
	maxLine    = 512      // bytes of an IRC line with its CR LF (RFC 2812, section 2.3)
	maxChannel = 50       // bytes of a channel's name (RFC 2812, section 1.3)
	maxNick    = 30       // bytes of a nick that we try
	maxRead    = 16 << 10 // bytes of a line that is read: message tags come before the 512
	// maxPrefix is what the server puts before a line of ours for others: ":nick!user@host ", of which we know only the bounds.
	maxPrefix = 1 + 30 + 1 + 12 + 1 + 64 + 1
	pingEvery = 60 * time.Second
	// linePause is how fast lines go out once lineBurst are sent: servers throw out who floods.
	linePause = 500 * time.Millisecond
	lineBurst = 5
)

// line is one IRC message.
type line struct {
	nick    string // of whom it comes from; "" for the server
	command string
	params  []string
}

// parseLine takes an IRC line apart (RFC 2812, section 2.3.1); message tags are passed over.
func parseLine(s string) line {
	var l line
	if strings.HasPrefix(s, "@") {
		_, s, _ = strings.Cut(s, " ")
	}
	if strings.HasPrefix(s, ":") {
		var prefix string
		prefix, s, _ = strings.Cut(s[1:], " ")
		if nick, _, is := strings.Cut(prefix, "!"); is {
			l.nick = nick
		}
	}
	s = strings.TrimLeft(s, " ")
	for s != "" {
		if strings.HasPrefix(s, ":") && l.command != "" {
			l.params = append(l.params, s[1:])
			break
		}
		var word string
		word, s, _ = strings.Cut(s, " ")
		if l.command == "" {
			l.command = strings.ToUpper(word)
		} else if word != "" {
			l.params = append(l.params, word)
		}
	}
	return l
}

// param is the i-th parameter; "" if there is none.
func (l line) param(i int) string {
	if i < len(l.params) {
		return l.params[i]
	}
	return ""
}

// clean takes control codes out of a text: colours with their numbers, formats, and what a terminal could mistake for orders.
func clean(text string) string {
	var b strings.Builder
	for i := 0; i < len(text); {
		r, size := utf8.DecodeRuneInString(text[i:])
		i += size
		switch {
		case r == 0x03: // colour: up to two digits, and as many behind a comma
			i += digits(text[i:])
			if i+1 < len(text) && text[i] == ',' && digits(text[i+1:]) > 0 {
				i += 1 + digits(text[i+1:])
			}
		case r == utf8.RuneError && size == 1:
			b.WriteRune('\uFFFD')
		case r >= ' ' && r != 0x7f || r == '\t':
			b.WriteRune(r)
		}
	}
	return b.String()
}

func digits(s string) (n int) {
	for n < len(s) && n < 2 && s[n] >= '0' && s[n] <= '9' {
		n++
	}
	return n
}

// split cuts a text into lines that fit into a PRIVMSG to the target with what stands around each, between runes and, where it can, words.
func split(text, target, before, after string) []string {
	room := maxLine - len("\r\n") - maxPrefix - len("PRIVMSG "+target+" :") - len(before) - len(after)
	var lines []string
	for part := range strings.Lines(text) {
		part = strings.TrimRight(clean(part), " \t")
		for part != "" {
			cut := len(part)
			if cut > room {
				cut = room
				for !utf8.RuneStart(part[cut]) {
					cut--
				}
				if space := strings.LastIndexByte(part[:cut], ' '); space > room/2 {
					cut = space
				}
			}
			lines = append(lines, before+part[:cut]+after)
			part = strings.TrimLeft(part[cut:], " ")
		}
	}
	return lines
}

// connection is one connection to the IRC server. Reading is its owner's; writing is safe from anywhere.
type connection struct {
	raw net.Conn
	in  *bufio.Reader
	out chan string
}

// dial connects and registers with the nick.
func dial(ctx context.Context, address, nick string) (*connection, error) {
	raw, err := (&net.Dialer{Timeout: 10 * time.Second}).DialContext(ctx, "tcp", address)
	if err != nil {
		return nil, err
	}
	c := &connection{raw: raw, in: bufio.NewReaderSize(raw, maxRead), out: make(chan string, 1000)}
	c.send("NICK %s", nick)
	c.send("USER %s 0 * :Matrix bridge", nick)
	return c, nil
}

// send queues a line; false if too many wait, when the server is slower than those who write.
func (c *connection) send(format string, args ...any) bool {
	select {
	case c.out <- strings.NewReplacer("\r", "", "\n", " ", "\x00", "").Replace(fmt.Sprintf(format, args...)):
		return true
	default:
		return false
	}
}

// write sends what is queued, and pings, until the context or the connection ends. It closes the connection.
func (c *connection) write(ctx context.Context) {
	defer c.raw.Close()
	ping := time.NewTicker(pingEvery)
	defer ping.Stop()
	budget, last := lineBurst, time.Now()
	for {
		var s string
		select {
		case s = <-c.out:
		case <-ping.C:
			s = "PING :bridge"
		case <-ctx.Done():
			_ = c.raw.SetWriteDeadline(time.Now().Add(time.Second))
			_, _ = c.raw.Write([]byte("QUIT :bridge stops\r\n"))
			return
		}
		budget = min(lineBurst, budget+int(time.Since(last)/linePause))
		if last = time.Now(); budget > 0 {
			budget--
		} else {
			select {
			case <-time.After(linePause):
			case <-ctx.Done():
			}
			last = time.Now()
		}
		_ = c.raw.SetWriteDeadline(time.Now().Add(30 * time.Second))
		if _, err := c.raw.Write([]byte(s + "\r\n")); err != nil {
			return
		}
	}
}

// read is the next line; an end after two pings without a sign of life, or at a line that has no end.
func (c *connection) read() (line, error) {
	if err := c.raw.SetReadDeadline(time.Now().Add(2 * pingEvery)); err != nil {
		return line{}, err
	}
	s, err := c.in.ReadSlice('\n')
	if err != nil {
		return line{}, err
	}
	return parseLine(strings.TrimRight(string(s), "\r\n")), nil
}

// fold is a nick or channel in one spelling, as servers with CASEMAPPING=ascii compare it. Those with the older mapping take []\~ and {}|^ for the
// same, too; there, spell a channel as it is named with -channel.
func fold(name string) string { return strings.ToLower(name) }
