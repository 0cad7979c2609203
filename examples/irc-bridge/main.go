// Command irc-bridge joins channels of an IRC network with Matrix rooms, in both directions, as an application service: it speaks the
// Application Service and client-server APIs to the homeserver over HTTP, and IRC over TCP. README.md says how to run it.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"log"
	"net/http"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"
)

// channels is a repeatable flag.
type channels []string

func (c *channels) String() string { return strings.Join(*c, ",") }

func (c *channels) Set(name string) error {
	if !strings.HasPrefix(name, "#") || strings.ContainsAny(name, " ,:\x07") || len(name) > maxChannel {
		return fmt.Errorf("a channel is # and at most %d characters without spaces, commas and colons", maxChannel-1)
	}
	*c = append(*c, name)
	return nil
}

func main() {
	var (
		list         channels
		generate     = flag.String("generate", "", "write a new registration to `file`, and end")
		registration = flag.String("registration", "registration.yaml", "the registration `file` that the homeserver has too")
		listen       = flag.String("listen", "127.0.0.1:9009", "`host:port` at which the homeserver calls this bridge; must fit the registration")
		homeserver   = flag.String("homeserver", "http://127.0.0.1:8008", "`URL` of the homeserver's client API")
		server       = flag.String("irc", "127.0.0.1:6667", "`host:port` of the IRC server")
		nick         = flag.String("nick", "matrix", "the bridge's `nick` on IRC")
	)
	flag.Var(&list, "channel", "IRC `channel` to bridge, repeatable")
	flag.Parse()
	log.SetFlags(0)
	if *generate != "" {
		if err := writeRegistration(*generate, "http://"+*listen); err != nil {
			log.Fatal(err)
		}
		return
	}
	if len(list) == 0 {
		log.Fatal("name at least one channel with -channel '#name'")
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	r, err := readRegistration(*registration)
	if err != nil {
		log.Fatal(err)
	}
	b := newBridge(newMatrix(*homeserver, r.asToken), *server, *nick, list)
	if err := b.run(ctx, *listen, r.hsToken); err != nil && !errors.Is(err, context.Canceled) {
		log.Fatal(err)
	}
}

// run serves the homeserver's calls and keeps the bridge going until ctx ends.
func (b *bridge) run(ctx context.Context, listen, hsToken string) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	calls := &http.Server{Addr: listen, Handler: b.calls(hsToken), ReadHeaderTimeout: 10 * time.Second}
	ended := make(chan error, 2)
	go func() { ended <- calls.ListenAndServe() }()
	go func() { ended <- b.work(ctx) }()
	err := <-ended
	cancel()
	shut, end := context.WithTimeout(context.WithoutCancel(ctx), 3*time.Second)
	defer end()
	err = errors.Join(err, calls.Shutdown(shut))
	<-ended
	return err
}
