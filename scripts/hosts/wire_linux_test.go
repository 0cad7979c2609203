package hosts

import (
	"fmt"
	"math/rand/v2"
	"os"
	"runtime"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// wire is what a host's cable is like, in each direction. It is made here, as kernels may lack netem.
type wire struct {
	loss  float64       // of 1, of all frames
	delay time.Duration // one way
	rate  int           // bits a second; 0: no limit
	queue int           // bytes that wait for their turn at that rate; what comes beyond is dropped
}

// frameSize holds what an interface of 1500 bytes hands out.
const frameSize = 2048

// rewire puts another cable, of the given kind, between the host and the bridge. Before the host's node starts. setFlags of the
// interface are as New made them.
func (h *Host) rewire(t *testing.T, w wire) {
	t.Helper()
	must := func(args ...string) {
		t.Helper()
		if err := ip(t.Context(), args...); err != nil {
			t.Fatal(err)
		}
	}
	br := h.lan.bridge()
	must("-n", br, "link", "del", h.port())
	inner, outer := tap(t, h.Namespace, "eth0"), tap(t, br, h.port())
	must("-n", br, "link", "set", h.port(), "master", "br0", "up")
	must("-n", h.Namespace, "addr", "add", h.Addr+"/24", "dev", "eth0")
	must("-n", h.Namespace, "link", "set", "eth0", "up")
	var both sync.WaitGroup
	both.Go(func() { w.carry(outer, inner) })
	both.Go(func() { w.carry(inner, outer) })
	t.Cleanup(func() {
		inner.Close()
		outer.Close()
		both.Wait()
	})
}

// carry takes frames from one end to the other until the ends are closed.
func (w wire) carry(to, from *os.File) {
	type frame struct {
		data []byte
		due  time.Time
	}
	under := make(chan frame, 4096)
	var way sync.WaitGroup
	way.Go(func() {
		for f := range under {
			time.Sleep(time.Until(f.due)) // this is the wire's length
			_, _ = to.Write(f.data)       // an interface that is down takes nothing
		}
	})
	defer way.Wait()
	defer close(under)
	free := time.Now() // when the last one has been put on the line
	for {
		buf := make([]byte, frameSize)
		n, err := from.Read(buf)
		if err != nil {
			return
		}
		now := time.Now()
		if free.Before(now) {
			free = now
		}
		if w.rate > 0 {
			if int(free.Sub(now).Seconds()*float64(w.rate)/8) > w.queue {
				continue
			}
			free = free.Add(time.Duration(float64(n*8) / float64(w.rate) * float64(time.Second)))
		}
		if rand.Float64() < w.loss {
			continue
		}
		select {
		case under <- frame{buf[:n], free.Add(w.delay)}:
		default: // no memory for more
		}
	}
}

// tap makes an interface in a namespace whose frames are read and written here.
func tap(t *testing.T, namespace, name string) (f *os.File) {
	t.Helper()
	err := inNamespace(namespace, func() error {
		fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC, 0)
		if err != nil {
			return err
		}
		ifr, err := unix.NewIfreq(name)
		if err != nil {
			return err
		}
		ifr.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI)
		if err := unix.IoctlIfreq(fd, unix.TUNSETIFF, ifr); err != nil {
			return err
		}
		if err := unix.SetNonblock(fd, true); err != nil {
			return err
		}
		f = os.NewFile(uintptr(fd), name)
		return nil
	})
	if err != nil {
		t.Fatalf("tap %s: %v", name, err)
	}
	return f
}

// inNamespace calls f on a thread that is in the network namespace. What f opens stays there.
func inNamespace(name string, f func() error) error {
	ns, err := os.Open("/run/netns/" + name)
	if err != nil {
		return err
	}
	defer ns.Close()
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread ends with the goroutine
		if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); err != nil {
			done <- fmt.Errorf("enter namespace %s: %w", name, err)
			return
		}
		done <- f()
	}()
	return <-done
}

// pause stops the node as a machine that falls asleep does; resume lets it go on.
func (h *Host) pause(t *testing.T)  { h.signal(t, unix.SIGSTOP) }
func (h *Host) resume(t *testing.T) { h.signal(t, unix.SIGCONT) }

func (h *Host) signal(t *testing.T, sig unix.Signal) {
	t.Helper()
	h.mu.Lock()
	defer h.mu.Unlock()
	if err := h.cmd.Process.Signal(sig); err != nil {
		t.Fatal(err)
	}
}

// in runs a command on the host.
func (h *Host) in(t *testing.T, command ...string) {
	t.Helper()
	if out, err := h.Command(t.Context(), command[0], command[1:]...).CombinedOutput(); err != nil {
		t.Fatalf("%v on host %d: %v: %s", command, h.number, err, out)
	}
}

// withoutIPv6 leaves the host IPv4 alone, as link-local addresses stay when others change.
func (h *Host) withoutIPv6(t *testing.T) {
	t.Helper()
	h.in(t, "sysctl", "-qw", "net.ipv6.conf.all.disable_ipv6=1")
}
