package node

import (
	"net"
	"sync"
)

// limited is a listener with so many connections open; further ones are closed at once, so that a client hears of it.
type limited struct {
	net.Listener
	places chan struct{}
}

func (l limited) Accept() (net.Conn, error) {
	for {
		c, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		select {
		case l.places <- struct{}{}:
			return &placed{Conn: c, places: l.places}, nil
		default:
			c.Close()
		}
	}
}

// placed gives its place back once.
type placed struct {
	net.Conn
	places chan struct{}
	once   sync.Once
}

func (c *placed) Close() error {
	c.once.Do(func() { <-c.places })
	return c.Conn.Close()
}
