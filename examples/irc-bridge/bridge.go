package main

import (
	"context"
	"encoding/hex"
	"fmt"
	"log"
	"slices"
	"strings"
	"sync"
	"time"
)

// bridge joins channels with rooms. What comes from IRC is handled by one goroutine, in order; what comes from Matrix by one transaction at a
// time.
type bridge struct {
	matrix       *matrix
	server, nick string
	channels     []string

	user     string            // the bridge's own, @ircbridge:…
	rooms    map[string]string // by fold(channel)
	channel  map[string]string // by room
	ready    chan struct{}     // closed when the rooms are there
	answered []string          // IDs of the transactions last done, of one handler at a time

	mu     sync.Mutex
	irc    *connection     // nil while there is none
	joined map[string]bool // by room: whether we are in its channel; false: we may not be
	// names are the users on IRC: by fold(nick), the ghost's user ID.
	names map[string]string
	in    map[string]map[string]bool // by room: ghosts that are in it
}

func newBridge(m *matrix, server, nick string, list []string) *bridge {
	return &bridge{
		matrix: m, server: server, nick: nick, channels: list,
		rooms: map[string]string{}, channel: map[string]string{}, ready: make(chan struct{}),
		joined: map[string]bool{}, names: map[string]string{}, in: map[string]map[string]bool{},
	}
}

// Waits after a failure, which double.
const (
	retryFirst = time.Second
	retryLast  = time.Minute
)

// work prepares the rooms, and then keeps a connection to the IRC server.
func (b *bridge) work(ctx context.Context) error {
	wait := retryFirst
	for b.prepare(ctx) != nil {
		if err := pause(ctx, &wait); err != nil {
			return err
		}
	}
	close(b.ready)
	wait = retryFirst
	for {
		began := time.Now()
		err := b.converse(ctx)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		log.Printf("IRC: %v; connecting again", err)
		if time.Since(began) > retryLast {
			wait = retryFirst
		}
		if err := pause(ctx, &wait); err != nil {
			return err
		}
	}
}

func pause(ctx context.Context, wait *time.Duration) error {
	d := *wait
	*wait = min(2*d, retryLast)
	select {
	case <-time.After(d):
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// prepare finds or makes a room for each channel. It logs why it could not.
func (b *bridge) prepare(ctx context.Context) (err error) {
	defer func() {
		if err != nil && ctx.Err() == nil {
			log.Printf("Matrix: %v; trying again", err)
		}
	}()
	if b.user, err = b.matrix.whoami(ctx); err != nil {
		return err
	}
	for _, channel := range b.channels {
		local := aliasPrefix + escape(strings.TrimPrefix(fold(channel), "#"))
		room, err := b.matrix.portal(ctx, local, "#"+local+":"+serverOf(b.user), channel)
		if err != nil {
			return err
		}
		b.rooms[fold(channel)], b.channel[room] = room, channel
		users, err := b.matrix.members(ctx, room)
		if err != nil {
			return err
		}
		b.in[room] = map[string]bool{}
		for _, user := range users {
			if b.isGhost(user) {
				b.in[room][user] = true
			}
		}
		log.Printf("%s is #%s:%s", channel, local, serverOf(b.user))
	}
	return nil
}

func serverOf(user string) string { _, server, _ := strings.Cut(user, ":"); return server }

func localpartOf(user string) string {
	local, _, _ := strings.Cut(strings.TrimPrefix(user, "@"), ":")
	return local
}

// isGhost says whether a user is the bridge's own work: what such a user says came from IRC, and must not go back.
func (b *bridge) isGhost(user string) bool {
	return user == b.user || serverOf(user) == serverOf(b.user) && strings.HasPrefix(localpartOf(user), ghostPrefix)
}

// escape makes of a name of IRC what may stand in a user ID or alias (appendices, Mapping from other character sets): other bytes become =XX.
func escape(name string) string {
	var out strings.Builder
	for _, c := range []byte(name) {
		if c >= 'a' && c <= 'z' || c >= '0' && c <= '9' || strings.IndexByte("._-", c) >= 0 {
			out.WriteByte(c)
		} else {
			out.WriteString("=" + hex.EncodeToString([]byte{c}))
		}
	}
	return out.String()
}

// ghost is the user who stands for a nick, made when it is first seen.
func (b *bridge) ghost(ctx context.Context, nick string) (string, error) {
	if user := b.names[fold(nick)]; user != "" {
		return user, nil
	}
	local := ghostPrefix + escape(fold(nick))
	user := "@" + local + ":" + serverOf(b.user)
	if err := b.matrix.register(ctx, local, user, clean(nick)); err != nil {
		return "", err
	}
	b.names[fold(nick)] = user
	return user, nil
}

// enter lets a nick's ghost be in the room.
func (b *bridge) enter(ctx context.Context, nick, room string) (string, error) {
	user, err := b.ghost(ctx, nick)
	if err != nil || b.in[room][user] {
		return user, err
	}
	if err := b.matrix.join(ctx, user, room); err != nil {
		return "", err
	}
	b.in[room][user] = true
	return user, nil
}

func (b *bridge) exit(ctx context.Context, user, room, reason string) error {
	if !b.in[room][user] {
		return nil
	}
	if err := b.matrix.leave(ctx, user, room, reason); err != nil {
		return err
	}
	delete(b.in[room], user)
	return nil
}

// converse keeps one connection to the IRC server until it breaks.
func (b *bridge) converse(ctx context.Context) error {
	c, err := dial(ctx, b.server, b.nick)
	if err != nil {
		return err
	}
	writing, stop := context.WithCancel(ctx)
	written := make(chan struct{})
	go func() { defer close(written); c.write(writing) }()
	defer func() {
		stop()
		<-written
		b.mu.Lock()
		b.irc, b.joined = nil, map[string]bool{}
		b.mu.Unlock()
	}()

	nick := b.nick
	listed := map[string][]string{} // by channel: who is there, while the server tells
	for {
		l, err := c.read()
		if err != nil {
			return err
		}
		switch l.command {
		case "PING":
			c.send("PONG :%s", l.param(0))
		case "433", "432": // the nick is taken, or not allowed
			if nick += "_"; len(nick) > maxNick {
				return fmt.Errorf("no nick is to be had: %s", l.param(2))
			}
			c.send("NICK %s", nick)
		case "001":
			nick = l.param(0)
			for _, channel := range b.channels {
				c.send("JOIN %s", channel)
			}
			b.mu.Lock()
			b.irc = c
			b.mu.Unlock()
		case "403", "405", "471", "473", "474", "475": // no such channel, or we may not be in it
			log.Printf("IRC: %s: %s", l.param(1), l.param(2))
			b.shutOut(l.param(1))
		case "PONG": // to our pings: time to knock again where we were not let in
			b.knock()
		case "ERROR":
			return fmt.Errorf("the server says: %s", l.param(0))
		case "353": // names of a channel
			listed[fold(l.param(2))] = append(listed[fold(l.param(2))], strings.Fields(l.param(3))...)
		case "366": // the end of the names
			b.takeNames(ctx, l.param(1), listed[fold(l.param(1))], nick)
			delete(listed, fold(l.param(1)))
		default:
			if l.command == "NICK" && fold(l.nick) == fold(nick) {
				nick = l.param(0)
			} else if err := b.fromIRC(ctx, l, nick); err != nil {
				if ctx.Err() != nil {
					return ctx.Err()
				}
				log.Printf("%s by %s did not reach Matrix: %v", l.command, l.nick, err)
			}
		}
	}
}

// shutOut notes that we may not be in a channel. What is said in its room is lost meanwhile: the other channels must not wait for it.
func (b *bridge) shutOut(channel string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if room := b.rooms[fold(channel)]; room != "" {
		b.joined[room] = false
	}
}

// knock tries to join where we are not.
func (b *bridge) knock() {
	b.mu.Lock()
	defer b.mu.Unlock()
	for room, channel := range b.channel {
		if b.irc != nil && !b.joined[room] {
			b.irc.send("JOIN %s", channel)
		}
	}
}

// takeNames makes the room's ghosts those who are in the channel.
func (b *bridge) takeNames(ctx context.Context, channel string, nicks []string, own string) {
	room := b.rooms[fold(channel)]
	if room == "" {
		return
	}
	here := map[string]bool{}
	for _, nick := range nicks {
		nick = strings.TrimLeft(nick, "~&@%+") // what the user may do in the channel
		if fold(nick) == fold(own) {
			continue
		}
		user, err := b.enter(ctx, nick, room)
		if err != nil {
			log.Printf("%s cannot be shown in %s: %v", nick, channel, err)
		}
		here[user] = true
	}
	for user := range b.in[room] {
		if !here[user] && user != b.user {
			if err := b.exit(ctx, user, room, "not on IRC any more"); err != nil {
				log.Printf("%s stays in %s: %v", user, channel, err)
			}
		}
	}
	b.mu.Lock()
	b.joined[room] = true
	b.mu.Unlock()
}

// fromIRC brings to Matrix what happened on IRC. own is the bridge's nick: what it does itself is no news.
func (b *bridge) fromIRC(ctx context.Context, l line, own string) error {
	if l.nick == "" || fold(l.nick) == fold(own) && l.command != "KICK" {
		return nil
	}
	room := b.rooms[fold(l.param(0))]
	switch l.command {
	case "PRIVMSG", "NOTICE":
		if room == "" {
			return nil // to the bridge itself
		}
		return b.say(ctx, l, room)
	case "JOIN":
		if room != "" {
			_, err := b.enter(ctx, l.nick, room)
			return err
		}
	case "PART":
		return b.gone(ctx, l.nick, []string{room}, l.param(1))
	case "KICK":
		if room != "" && fold(l.param(1)) != fold(own) {
			return b.gone(ctx, l.param(1), []string{room}, "kicked: "+l.param(2))
		}
		b.mu.Lock()
		delete(b.joined, room)
		if b.irc != nil {
			b.irc.send("JOIN %s", l.param(0))
		}
		b.mu.Unlock()
	case "QUIT":
		return b.gone(ctx, l.nick, nil, l.param(0))
	case "NICK":
		return b.renamed(ctx, l.nick, l.param(0))
	}
	return nil
}

// say sends what somebody says on IRC, as their ghost.
func (b *bridge) say(ctx context.Context, l line, room string) error {
	text, kind := l.param(1), "m.text"
	if l.command == "NOTICE" {
		kind = "m.notice"
	}
	if ctcp, is := strings.CutPrefix(text, "\x01"); is {
		action, is := strings.CutPrefix(strings.TrimSuffix(ctcp, "\x01"), "ACTION ")
		if !is {
			return nil // some other client-to-client request
		}
		text, kind = action, "m.emote"
	}
	if text = clean(text); text == "" {
		return nil
	}
	user, err := b.enter(ctx, l.nick, room)
	if err != nil {
		return err
	}
	return b.matrix.say(ctx, user, room, kind, text)
}

// gone takes a nick's ghost out of the rooms; nil: out of all.
func (b *bridge) gone(ctx context.Context, nick string, from []string, reason string) error {
	user, err := b.ghost(ctx, nick)
	if err != nil {
		return err
	}
	for room := range b.in {
		if from == nil || slices.Contains(from, room) {
			if err := b.exit(ctx, user, room, clean(reason)); err != nil {
				return err
			}
		}
	}
	return nil
}

// renamed: the ghost of the new nick takes the place of the old one's, since that nick may be somebody else's next.
func (b *bridge) renamed(ctx context.Context, old, now string) error {
	before, err := b.ghost(ctx, old)
	if err != nil {
		return err
	}
	if fold(old) == fold(now) { // only another spelling
		delete(b.names, fold(old))
		_, err := b.ghost(ctx, now)
		return err
	}
	for room, users := range b.in {
		if !users[before] {
			continue
		}
		if _, err := b.enter(ctx, now, room); err != nil {
			return err
		}
		if err := b.exit(ctx, before, room, "is now "+clean(now)); err != nil {
			return err
		}
	}
	return nil
}
