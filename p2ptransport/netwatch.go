package p2ptransport

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"slices"
	"strings"
	"time"
)

// lookEvery second at the interfaces: two system calls, some 50 µs.
const lookEvery = time.Second

// networkWatch notices that an interface or an address came or went.
type networkWatch struct {
	log  *slog.Logger
	last string
}

func newNetworkWatch(log *slog.Logger) *networkWatch {
	return &networkWatch{log: log, last: fingerprint()}
}

// run calls changed after each change, until ctx ends.
func (w *networkWatch) run(ctx context.Context, changed func()) {
	tick := time.NewTicker(lookEvery)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
		now := fingerprint()
		if now == w.last {
			continue
		}
		w.last = now
		w.log.Debug("network changed", "interfaces", now)
		changed()
	}
}

// fingerprint describes all interfaces with their state and all addresses.
func fingerprint() string {
	var b strings.Builder
	ifaces, _ := net.Interfaces()
	for _, i := range ifaces {
		fmt.Fprintf(&b, "%d %s %s; ", i.Index, i.Name, i.Flags&(net.FlagUp|net.FlagRunning))
	}
	addrs, _ := net.InterfaceAddrs()
	texts := make([]string, 0, len(addrs))
	for _, a := range addrs {
		texts = append(texts, a.String())
	}
	slices.Sort(texts)
	b.WriteString(strings.Join(texts, " "))
	return b.String()
}
