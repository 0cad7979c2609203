package main

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/sha256"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// floor is what this machine needs for the parts of the work.
type floor struct {
	sign, verify time.Duration // ed25519, 600 B
	hash         time.Duration // SHA-256, 1 KiB
	sync         durations     // 1 KiB appended to a file and fsynced
	http         durations     // a request and its answer on a connection that stays open
	perSecond    float64       // such requests with inFlight at once
}

// send is the least that an acknowledged message needs: it is signed, hashed and synced, and answered.
func (f floor) send() time.Duration { return f.sync.at(50) + f.http.at(50) + f.sign + f.hash }

// across is the least from send to another node's /sync: two synced appends, two verifications, three round trips.
func (f floor) across() time.Duration {
	return 2*f.sync.at(50) + 3*f.http.at(50) + f.sign + 2*f.verify + 2*f.hash
}

// durations are the measured times of one thing.
type durations []time.Duration

// at is a percentile.
func (d durations) at(percent int) time.Duration {
	if len(d) == 0 {
		return 0
	}
	sorted := slices.Sorted(slices.Values(d))
	return sorted[min(len(sorted)*percent/100, len(sorted)-1)]
}

func measureFloor(ctx context.Context, dir string) (f floor, err error) {
	message := make([]byte, 600)
	public, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return f, err
	}
	signature := ed25519.Sign(private, message)
	f.sign = each(2000, func() { ed25519.Sign(private, message) })
	f.verify = each(2000, func() { ed25519.Verify(public, message, signature) })
	kilo := make([]byte, 1024)
	f.hash = each(20000, func() { sha256.Sum256(kilo) })

	file, err := os.Create(filepath.Join(dir, "floor"))
	if err != nil {
		return f, err
	}
	defer file.Close()
	for range 1000 {
		t := time.Now()
		if _, err := file.Write(kilo); err != nil {
			return f, err
		}
		if err := file.Sync(); err != nil {
			return f, err
		}
		f.sync = append(f.sync, time.Since(t))
	}

	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return f, err
	}
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		_, _ = io.WriteString(w, `{"event_id":"$0123456789012345678901234567890123456789012"}`)
	})}
	ended := make(chan struct{})
	go func() { defer close(ended); _ = server.Serve(l) }()
	defer func() { server.Close(); <-ended }()
	get := func() error {
		req, err := http.NewRequestWithContext(ctx, "PUT", "http://"+l.Addr().String(), strings.NewReader(`{"msgtype":"m.text","body":"hello"}`))
		if err != nil {
			return err
		}
		res, err := web.Do(req)
		if err != nil {
			return err
		}
		defer res.Body.Close()
		_, err = io.Copy(io.Discard, res.Body)
		return err
	}
	if f.http, err = inSequence(2000, get); err != nil {
		return f, err
	}
	_, f.perSecond, err = atOnce(10000, func(int) error { return get() })
	return f, err
}

// each is the mean time of f.
func each(n int, f func()) time.Duration {
	t := time.Now()
	for range n {
		f()
	}
	return time.Since(t) / time.Duration(n)
}

// inSequence times n calls, one after the other.
func inSequence(n int, f func() error) (durations, error) {
	var d durations
	for range n {
		t := time.Now()
		if err := f(); err != nil {
			return nil, err
		}
		d = append(d, time.Since(t))
	}
	return d, nil
}

// inFlight is how many requests the scenarios under load make at once.
const inFlight = 16

// atOnce makes n calls, inFlight at a time, and says how many were made in a second.
func atOnce(n int, f func(i int) error) (durations, float64, error) {
	var next atomic.Int64
	var wg sync.WaitGroup
	times, errs := make([]durations, inFlight), make([]error, inFlight)
	began := time.Now()
	for worker := range inFlight {
		wg.Go(func() {
			for i := next.Add(1); i <= int64(n); i = next.Add(1) {
				t := time.Now()
				if errs[worker] = f(int(i)); errs[worker] != nil {
					return
				}
				times[worker] = append(times[worker], time.Since(t))
			}
		})
	}
	wg.Wait()
	rate := float64(n) / time.Since(began).Seconds()
	for _, err := range errs {
		if err != nil {
			return nil, 0, err
		}
	}
	return slices.Concat(times...), rate, nil
}
