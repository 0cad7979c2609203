package store

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

// logFile follows Badger's current write-ahead log, to sync it.
//
// Badger's own SyncWrites costs two syncs per commit, one of the log and one of the value log, which is
// always empty here: 97 µs against 46 µs for a plain append and fsync on the same disk. It never syncs the
// directory entry of a new log, whose commits a power loss could therefore take as a whole, and it creates logs with
// holes, where a full disk means SIGBUS. So on Linux we sync the log ourselves, once per commit, sync the directory when
// a new log appears, and give a new log its blocks. Nobody sees a commit before: snapshots are opened at commit numbers
// that we hand out only then.
type logFile struct {
	dir string
	fid int
	f   *os.File // nil: no log seen yet, or Badger syncs
}

// logBytes is what is allocated for a log: Badger begins a new one after 8 MiB, and one transaction may follow.
const logBytes = 10 << 20

func logPath(dir string, fid int) string { return filepath.Join(dir, fmt.Sprintf("%05d.mem", fid)) }

// newLogFile finds the log that Badger has begun at Open: the one with the highest number.
func newLogFile(dir string) (*logFile, error) {
	l := &logFile{dir: dir}
	if dir == "" || !syncsMappedPages {
		return l, nil
	}
	fids, err := logFids(dir)
	if err != nil {
		return nil, err
	}
	if len(fids) == 0 {
		return nil, errors.New("badger has no log")
	}
	return l, l.begin(fids[len(fids)-1])
}

// begin turns to a new log.
func (l *logFile) begin(fid int) error {
	f, err := os.OpenFile(logPath(l.dir, fid), os.O_RDWR, 0)
	if err != nil {
		return err
	}
	l.close()
	l.f, l.fid = f, fid
	fi, err := f.Stat()
	if err != nil {
		return err
	}
	if err := allocate(f, min(fi.Size(), logBytes)); err != nil {
		return fmt.Errorf("allocate %s: %w", f.Name(), err)
	}
	return syncDir(l.dir)
}

// sync makes the commit durable that Badger has just written. A transaction lies in one log, and commits come one after
// another, so it is in the newest.
func (l *logFile) sync() error {
	if l.f == nil {
		return nil
	}
	for {
		err := l.begin(l.fid + 1)
		if errors.Is(err, fs.ErrNotExist) {
			break
		}
		if err != nil {
			return err
		}
	}
	return datasync(l.f)
}

func (l *logFile) close() {
	if l.f != nil {
		l.f.Close()
	}
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
