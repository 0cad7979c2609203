package store

import (
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"os"
	"path/filepath"
)

// witness is a small file beside Badger that knows the newest durable commit. A damaged log loses its tail
// without a word, and only a witness outside shows it.
//
// It holds two slots, written in turn, each after its commit is durable: so it never knows more than was on disk,
// and a torn write costs one slot. It is synced every witnessSync commits and at Close; in between it survives the
// process but not the power, and may then lag behind the store, never the other way round.
//
//	slot: magic 8, incarnation 16, commit 8, position 8, hash 32, CRC-32C 4
type witness struct {
	f    *os.File // nil: in memory
	slot int64
	n    int // commits since the last sync
}

const (
	witnessMagic = "plexwit1"
	witnessSize  = 8 + 16 + 8 + 8 + 32 + 4
	witnessStep  = 4096 // a page each, so that one torn write spares the other
	// witnessSync is less than commitRing: the store still has the record of the commit that the witness knows.
	witnessSync = 512
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// testimony is one slot.
type testimony struct {
	incarnation Incarnation
	commitRecord
}

func (t *testimony) encode() []byte {
	b := append(make([]byte, 0, witnessSize), witnessMagic...)
	b = append(b, t.incarnation[:]...)
	b = binary.BigEndian.AppendUint64(b, t.Commit)
	b = binary.BigEndian.AppendUint64(b, uint64(t.Position))
	b = append(b, t.Hash[:]...)
	return binary.BigEndian.AppendUint32(b, crc32.Checksum(b, castagnoli))
}

func decodeTestimony(b []byte) (t testimony, ok bool) {
	if len(b) != witnessSize || string(b[:8]) != witnessMagic ||
		binary.BigEndian.Uint32(b[witnessSize-4:]) != crc32.Checksum(b[:witnessSize-4], castagnoli) {
		return t, false
	}
	copy(t.incarnation[:], b[8:])
	t.Commit = binary.BigEndian.Uint64(b[24:])
	t.Position = Position(binary.BigEndian.Uint64(b[32:]))
	copy(t.Hash[:], b[40:])
	return t, true
}

// openWitness opens or creates the file and returns what it knows; nil if nothing (in memory, new, or damaged).
func openWitness(dir string) (*witness, *testimony, error) {
	w := &witness{}
	if dir == "" {
		return w, nil, nil
	}
	f, err := os.OpenFile(filepath.Join(dir, "witness"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, nil, err
	}
	w.f = f
	// What a process that was killed had written is counted as synced from here on.
	if err := datasync(f); err != nil {
		f.Close()
		return nil, nil, err
	}
	var best *testimony
	for slot := range int64(2) {
		b := make([]byte, witnessSize)
		if _, err := f.ReadAt(b, slot*witnessStep); err != nil && !errors.Is(err, io.EOF) {
			f.Close()
			return nil, nil, err
		}
		if t, ok := decodeTestimony(b); ok && (best == nil || t.Commit > best.Commit) {
			best, w.slot = &t, 1-slot
		}
	}
	return w, best, nil
}

// begin makes a new incarnation's testimony the only one. It is durable when begin returns.
func (w *witness) begin(t testimony) error {
	for slot := range int64(2) {
		if _, err := w.f.WriteAt(t.encode(), slot*witnessStep); err != nil {
			return fmt.Errorf("witness: %w", err)
		}
	}
	return w.f.Sync()
}

// write records a commit that is durable.
func (w *witness) write(t testimony) error {
	if w.f == nil {
		return nil
	}
	if _, err := w.f.WriteAt(t.encode(), w.slot*witnessStep); err != nil {
		return fmt.Errorf("witness: %w", err)
	}
	w.slot = 1 - w.slot
	if w.n++; w.n < witnessSync {
		return nil
	}
	w.n = 0
	return datasync(w.f)
}

func (w *witness) close() error {
	if w.f == nil {
		return nil
	}
	return errors.Join(datasync(w.f), w.f.Close())
}

// The incarnation lies beside Badger too, so that a Badger directory put back from elsewhere is noticed.

func readIncarnation(dir string) (id Incarnation, ok bool, err error) {
	b, err := os.ReadFile(filepath.Join(dir, "incarnation"))
	if errors.Is(err, fs.ErrNotExist) {
		return id, false, nil
	}
	if err != nil {
		return id, false, err
	}
	n, err := hex.Decode(id[:], b[:min(len(b), hex.EncodedLen(len(id)))])
	return id, err == nil && n == len(id), nil
}

// writeIncarnation replaces the file: temporary file, sync, rename, sync of the directory.
func writeIncarnation(dir string, id Incarnation) error {
	tmp := filepath.Join(dir, "incarnation.new")
	f, err := os.OpenFile(tmp, os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(f, "%x\n", id[:])
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		return err
	}
	if err := os.Rename(tmp, filepath.Join(dir, "incarnation")); err != nil {
		return err
	}
	return syncDir(dir)
}
