package store

import (
	"errors"
	"os"

	"golang.org/x/sys/unix"
)

// syncsMappedPages: fdatasync of a file also writes the pages that were changed through a shared mapping of it, so
// one sync of Badger's current log makes a commit durable (see logFile).
const syncsMappedPages = true

func datasync(f *os.File) error { return unix.Fdatasync(int(f.Fd())) }

// freeSpace is what an ordinary process may still write in the file system of dir, in bytes.
func freeSpace(dir string) (int64, error) {
	var s unix.Statfs_t
	if err := unix.Statfs(dir, &s); err != nil {
		return 0, &os.PathError{Op: "statfs", Path: dir, Err: err}
	}
	return int64(s.Bavail) * int64(s.Bsize), nil //nolint:unconvert // their types differ between platforms
}

// allocate gives the file its first n bytes on disk. A file system that cannot is no error.
func allocate(f *os.File, n int64) error {
	err := unix.Fallocate(int(f.Fd()), 0, 0, n)
	if errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.ENOSYS) {
		return nil
	}
	return err
}

// lockFile takes the lock, which ends with the file or the process; ErrLocked.
func lockFile(f *os.File) error {
	err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	if errors.Is(err, unix.EWOULDBLOCK) {
		return ErrLocked
	}
	return err
}
