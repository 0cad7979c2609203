package store

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
	"testing"
)

func init() { children["disk full"] = diskFullChild }

// TestDiskFull fills a small file system under a running store, which lives in another process: where it cannot be closed
// properly, Badger keeps its goroutines, and where it fails, it ends with SIGBUS.
func TestDiskFull(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root, to mount a small file system")
	}
	t.Parallel()
	dir := t.TempDir()
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "size=170m"); err != nil {
		t.Skip("cannot mount a small file system: ", err)
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(dir, 0); err != nil {
			t.Error(err)
		}
	})
	out, err := child("disk full", dir).CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	d := fullDisk{dir: dir}
	if _, err := fmt.Sscan(string(out), &d.commits); err != nil {
		t.Fatal(err)
	}
	data := filepath.Join(dir, "data")

	// Reopening: there is no room for it. With room for that only, it opens for reading; with more, for writing.
	if _, err := Open(data, Options{}); !errors.Is(err, ErrDiskFull) {
		t.Fatal("open on a full disk: ", err)
	}
	if err := d.fillTo(openNeeds + 8<<20); err != nil {
		t.Fatal(err)
	}
	d.s = openAt(t, data, Options{})
	if d.s.Loss() != "" {
		t.Error("loss: ", d.s.Loss())
	}
	if err := d.whole(); err != nil {
		t.Error("reopened with little room: ", err)
	}
	if err := d.write(); !errors.Is(err, ErrDiskFull) {
		t.Error("write with little room: ", err)
	}
	if err := os.Truncate(filepath.Join(dir, "filler"), 0); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(d.write(), d.whole()); err != nil {
		t.Error("with room again: ", err)
	}
}

// fullDisk is a store on a small file system, and a file that fills it.
type fullDisk struct {
	dir     string
	s       *Store
	commits uint64
}

func (d *fullDisk) write() error {
	err := workCommit(d.s, d.commits+1)
	if err == nil {
		d.commits++
	}
	return err
}

// whole checks that reads show all that was written.
func (d *fullDisk) whole() error {
	if n, err := workState(d.s); n != d.commits || err != nil {
		return fmt.Errorf("%d commits of %d: %w", n, d.commits, err)
	}
	return nil
}

// fillTo leaves so many bytes free.
func (d *fullDisk) fillTo(left int64) error {
	f, err := os.OpenFile(filepath.Join(d.dir, "filler"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return err
	}
	defer f.Close()
	fi, err := f.Stat()
	if err != nil {
		return err
	}
	free, err := freeSpace(d.dir)
	if err != nil {
		return err
	}
	size := fi.Size() + free - left
	return errors.Join(f.Truncate(size), allocate(f, size))
}

// diskFullChild prints how many commits it made.
func diskFullChild(dir string) error {
	d := &fullDisk{dir: dir}
	var err error
	if d.s, err = Open(filepath.Join(dir, "data"), Options{}); err != nil {
		return err
	}
	for range 20 {
		if err := d.write(); err != nil {
			return err
		}
	}
	// 1. Slowly: writes are refused, reads go on, and it recovers when there is room.
	for left := int64(lowWater + 4<<20); err == nil; left -= 1 << 20 {
		if err := d.fillTo(left); err != nil {
			return err
		}
		err = d.write()
	}
	if !errors.Is(err, ErrDiskFull) {
		return err
	}
	if err := errors.Join(d.whole(), d.fillTo(lowWater+regainMargin+1<<20), d.write(), d.whole()); err != nil {
		return fmt.Errorf("room again: %w", err)
	}
	// 2. To the last byte, and then to that of the reserve, which was given up for it.
	for range 3 {
		if err := d.fillTo(0); err != nil {
			return err
		}
		if err := d.write(); !errors.Is(err, ErrDiskFull) {
			return fmt.Errorf("write on a full disk: %w", err)
		}
		if err := d.whole(); err != nil {
			return err
		}
	}
	// 3. Closing: Badger would write a table.
	if err := d.s.Close(); !errors.Is(err, ErrDiskFull) {
		return fmt.Errorf("close on a full disk: %w", err)
	}
	fmt.Println(d.commits)
	return nil
}
