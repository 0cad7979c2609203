package store

import (
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"os"
	"path/filepath"
	"strconv"
)

// schemaVersion is that of the layout in keys.go. Schema 1 had trie nodes and event records of another form, schema 2 no
// tableCitedBy; no release wrote them, so nothing here reads them. Stores of schema 3 and up are brought up to date (migrate.go). Schema 5 has event
// records with relatedMark, and counts the people. Schema 6 has tableSegment: who does not know it would leave segments that are no longer true.
const (
	schemaVersion = 6
	oldestSchema  = 3
)

var (
	keySchema      = key(tableMeta).str("schema")
	keyIncarnation = key(tableMeta).str("incarnation")
)

// Open opens or creates the store in dir. Loss tells in words what a damaged log has lost ("" if nothing); a
// loss begins a new incarnation. Errors: ErrLocked, ErrNewer, ErrOlder, ErrDiskFull, ErrDamaged, or those of the file system.
func Open(dir string, o Options) (*Store, error) {
	s := &Store{
		dir:       dir,
		opts:      o,
		log:       o.Log,
		queue:     make(chan *update),
		closing:   make(chan struct{}),
		committer: make(chan struct{}),
		changed:   make(chan struct{}),
		readers:   map[uint64]int{},
		tries:     newTrieCache(),
		events:    newEventCache(),
		indexing:  newIndexing(),
	}
	if s.log == nil {
		s.log = slog.New(slog.DiscardHandler)
	}
	if o.InMemory {
		s.dir = ""
	}
	if err := s.open(); err != nil {
		s.closeFiles()
		return nil, fmt.Errorf("open store: %w", err)
	}
	s.compactors = newCompactors(s.db)
	go s.commitLoop()
	return s, nil
}

// open does the steps of Open; what it has opened when it fails, closeFiles closes.
func (s *Store) open() error {
	in := &inspection{manifestEnd: -1}
	var err error
	if s.dir != "" {
		// 1. Ours alone.
		if err := os.MkdirAll(s.dir, 0o700); err != nil {
			return err
		}
		if s.lock, err = os.OpenFile(filepath.Join(s.dir, "lock"), os.O_CREATE|os.O_RDWR, 0o600); err != nil {
			return err
		}
		if err := lockFile(s.lock); err != nil {
			return err
		}
		// 2. Whole, as far as can be seen without changing anything.
		if in, err = inspect(s.dir); err != nil {
			return err
		}
	}
	// 3. Room on the disk.
	guarded := s.dir
	if s.opts.small {
		guarded = ""
	}
	if s.reserve, err = newReserve(guarded, in.logged(), s.log); err != nil {
		return err
	}
	// 4. Badger.
	if s.dir != "" {
		if s.loss, err = in.repair(); err != nil {
			return err
		}
	}
	if s.db, err = openBadger(s.dir, s.opts.small, s.log); err != nil {
		return err
	}
	if s.logFile, err = newLogFile(s.dir); err != nil {
		return err
	}
	// 5. Is it what it was?
	return s.resume()
}

// resume finds the newest commit, checks that there is no hole before it, and compares it with the witness.
func (s *Store) resume() error {
	r := &Reader{s: s, txn: s.db.NewTransactionAt(math.MaxUint64, false), ts: math.MaxUint64}
	defer r.txn.Discard()
	v, err := r.get(keySchema)
	isNew := errors.Is(err, ErrNotFound)
	if err != nil && !isNew {
		return err
	}
	schema := schemaVersion
	if !isNew {
		schema, err = strconv.Atoi(string(v))
	}
	switch {
	case isNew:
	case err != nil || schema > schemaVersion:
		return fmt.Errorf("%w: schema %s, this one knows %d", ErrNewer, v, schemaVersion)
	case schema < oldestSchema:
		return fmt.Errorf("%w (schema %d, this one knows %d)", ErrOlder, schema, schemaVersion)
	}

	ring, err := r.commitRing()
	if err != nil {
		return err
	}
	for _, c := range ring {
		if c.Commit > s.last.Commit {
			s.last = c
		}
	}
	for n := s.last.Commit; n > 0 && n+commitRing > s.last.Commit; n-- {
		if ring[n%commitRing].Commit != n {
			return fmt.Errorf("%w: commit %d is missing before commit %d", ErrDamaged, n, s.last.Commit)
		}
	}
	s.opened, s.events.commit = s.last.Commit, s.last.Commit

	var known *testimony
	if s.witness, known, err = openWitness(s.dir); err != nil {
		return err
	}
	if id, err := r.get(keyIncarnation); err == nil {
		copy(s.incarnation[:], id)
	} else if !errors.Is(err, ErrNotFound) {
		return err
	}
	if s.dir != "" {
		reason, err := s.compare(known, ring, isNew)
		if err != nil {
			return err
		}
		switch {
		case s.loss == "":
			s.loss = reason
		case reason != "":
			s.loss += "; " + reason
		}
	}
	if isNew || s.loss != "" {
		err = s.beginIncarnation(r, schema)
	}
	if err == nil && schema < schemaVersion {
		err = s.migrate(schema)
	}
	if err == nil {
		err = s.sweepMedia(r)
	}
	return err
}

// commitRing reads the records of the newest commits, by number modulo commitRing.
func (r *Reader) commitRing() (map[uint64]commitRecord, error) {
	ring := map[uint64]commitRecord{}
	err := r.scan(key(tableCommit), nil, false, func(k, v []byte) (bool, error) {
		c, err := decodeCommit(v)
		ring[parts(k).u64()] = c
		return err == nil, err
	})
	return ring, err
}

// compare says in words what the store has lost against what lies beside it; "" if nothing.
func (s *Store) compare(known *testimony, ring map[uint64]commitRecord, isNew bool) (string, error) {
	id, named, err := readIncarnation(s.dir)
	if err != nil {
		return "", err
	}
	switch {
	case isNew && known == nil && !named:
		return "", nil
	case isNew && known != nil && known.Commit > 0:
		return fmt.Sprintf("everything: the database is empty, and %d changes had been written", known.Position), nil
	case isNew:
		return "", nil // a first start that was cut off
	case known == nil:
		return "the witness file is missing or damaged, so what may be lost is not known", nil
	case !named || id != s.incarnation || known.incarnation != s.incarnation:
		return "the database and the files beside it are of different incarnations: one of them was put back from elsewhere", nil
	case known.Commit > s.last.Commit:
		return fmt.Sprintf("the newest %d commits: changes after position %d, up to %d, are lost",
			known.Commit-s.last.Commit, s.last.Position, known.Position), nil
	case known.Commit > 0 && ring[known.Commit%commitRing] != known.commitRecord:
		return fmt.Sprintf("the history up to position %d is not the one that was written", known.Position), nil
	}
	return "", nil
}

// beginIncarnation starts a new life of the data directory, whose layout is that of schema.
func (s *Store) beginIncarnation(r *Reader, schema int) error {
	if err := s.reserve.check(); err != nil {
		return err
	}
	rand.Read(s.incarnation[:])
	if s.loss != "" {
		s.log.Warn("the store has lost something and begins a new incarnation", "loss", s.loss)
	}
	// First what lies beside Badger: cut off behind it, a first start begins again, and a loss stays one.
	if s.dir != "" {
		if err := s.witness.begin(testimony{s.incarnation, s.last}); err != nil {
			return err
		}
		if err := writeIncarnation(s.dir, s.incarnation); err != nil {
			return err
		}
	}
	g := &group{s: s, snap: r, pending: newOverlay(), last: s.last.Position}
	if err := errors.Join(
		g.pending.write(keySchema, write{value: []byte(strconv.Itoa(schema))}),
		g.pending.write(keyIncarnation, write{value: s.incarnation[:]}),
	); err != nil {
		return err
	}
	return s.commit(g)
}

// Close refuses new updates, waits for the committer and for Views under way, and then closes the files: Badger first,
// which still writes, then the lock.
func (s *Store) Close() error {
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return nil
	}
	s.closed = true
	s.mu.Unlock()
	close(s.closing)
	<-s.committer
	s.inFlight.Wait()
	return s.closeFiles()
}

// closeFiles closes what open has opened.
func (s *Store) closeFiles() error {
	var err error
	if s.witness != nil {
		err = s.witness.close()
	}
	if s.db != nil {
		err = errors.Join(err, s.closeBadger())
	}
	if s.logFile != nil {
		s.logFile.close()
	}
	if s.lock != nil {
		err = errors.Join(err, s.lock.Close())
	}
	return errors.Join(err, s.closeMedia())
}

// closeBadger closes Badger, which writes its memtables as tables. Where the disk has no room for them it is left as
// it is: its logs hold everything, and the process is about to end.
func (s *Store) closeBadger() error {
	if s.dir != "" {
		fids, err := logFids(s.dir)
		if err != nil {
			return err
		}
		if !s.reserve.forClosing(int64(len(fids)) * logBytes) {
			return fmt.Errorf("close store: %w; nothing is lost", ErrDiskFull)
		}
	}
	return s.db.Close()
}
