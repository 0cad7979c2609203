package store

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/dgraph-io/badger/v4/fb"
	"github.com/dgraph-io/badger/v4/pb"
	"github.com/dgraph-io/badger/v4/y"
	"google.golang.org/protobuf/proto"
)

// Badger trusts its files more than a device deserves. Opened on damaged ones it drops a table with a wrong checksum, cuts a
// log at the first bad record and goes on with the logs after it, deletes tables that a cut-off manifest no longer
// names, refuses a log of length 0 as a crash leaves it, and panics or allocates what a bad length says. So its
// files are read here first, under our lock, without being changed (inspect), and then made fit for it (repair).

// ErrDamaged: the files are damaged in a way that leaves no consistent state, or Badger could not read them.
var ErrDamaged = errors.New("the data directory is damaged")

// logSpan is the complete transactions of one log.
type logSpan struct {
	fid         int
	first, last uint64 // commit numbers; 0 if it holds none
	end, size   int64  // where the last complete transaction ends; length of the file
	header      bool   // the header is as Badger wants it
}

// inspection is what Open does with the files.
type inspection struct {
	dir         string
	tabled      uint64    // all commits up to this one are in tables: Badger writes one log after the other as tables
	logs        []logSpan // continue the tables without a gap, none empty
	empty       []logSpan // hold no complete transaction
	behindGap   []logSpan // what they hold rests on commits that are gone
	manifestEnd int64     // where the manifest is to be cut off; -1: not
}

// logged is the size of what the logs hold.
func (in *inspection) logged() int64 {
	var n int64
	for _, l := range in.logs {
		n += l.end
	}
	return n
}

// inspect reads the files; errors are ErrDamaged or those of reading.
func inspect(dir string) (*inspection, error) {
	in := &inspection{dir: dir, manifestEnd: -1}
	missing, err := in.inspectTables()
	if err != nil {
		return nil, err
	}
	if err := in.inspectLogs(); err != nil {
		return nil, err
	}
	// A power loss may take the directory entry of the newest table. Its log is deleted after that, so it is still here:
	// without the manifest's last word Badger makes the table again.
	if missing != 0 && len(in.logs) == 0 {
		return nil, fmt.Errorf("%w: table %d is missing, and its log is gone", ErrDamaged, missing)
	}
	return in, nil
}

// logFids lists the numbers of Badger's logs in order.
func logFids(dir string) ([]int, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	var fids []int
	for _, e := range entries {
		if name, ok := strings.CutSuffix(e.Name(), ".mem"); ok {
			if fid, err := strconv.Atoi(name); err == nil {
				fids = append(fids, fid)
			}
		}
	}
	slices.Sort(fids)
	return fids, nil
}

func (in *inspection) inspectLogs() error {
	fids, err := logFids(in.dir)
	if err != nil {
		return err
	}
	held := in.tabled
	for _, fid := range fids {
		l, err := readLog(in.dir, fid)
		switch {
		case err != nil:
			return err
		case l.first == 0:
			in.empty = append(in.empty, l)
		case len(in.behindGap) > 0 || l.first > held+1:
			in.behindGap = append(in.behindGap, l)
		default:
			in.logs = append(in.logs, l)
			held = max(held, l.last)
		}
	}
	return nil
}

// Badger's log: a header of 20 bytes, of which the first 8 are 0 where nothing is encrypted, then entries of
//
//	meta byte, user meta byte, key length, value length, expiry (uvarints), key, value, CRC-32C of all that
//
// where a key ends with 8 bytes of MaxUint64 minus the commit number, and the last entry of a transaction has
// the commit number as decimal value.
const (
	logHeaderSize = 20
	metaTxn       = 1 << 6
	metaTxnEnd    = 1 << 7
	maxLogKey     = 1 << 16
	maxLogValue   = 2 << 20
)

// readLog finds the complete transactions at the start of a log, as Badger would, and that they follow each other.
func readLog(dir string, fid int) (logSpan, error) {
	l := logSpan{fid: fid, end: logHeaderSize}
	f, err := os.Open(logPath(dir, fid))
	if err != nil {
		return l, err
	}
	defer f.Close()
	fi, err := f.Stat()
	if err != nil {
		return l, err
	}
	l.size = fi.Size()
	r := &logReader{in: bufio.NewReaderSize(f, 64<<10)}
	var header [logHeaderSize]byte
	if _, err := io.ReadFull(r.in, header[:]); err != nil {
		return l, nil
	}
	l.header = [8]byte(header[:8]) == [8]byte{}
	r.offset = logHeaderSize
	for open := uint64(0); ; {
		e, ok := r.next()
		if !ok {
			return l, nil
		}
		switch {
		case e.meta&metaTxn != 0 && (open == 0 || open == e.commit):
			open = e.commit
		case e.meta&metaTxnEnd != 0 && open != 0 && string(e.value) == strconv.FormatUint(open, 10):
			if l.last != 0 && open != l.last+1 {
				return l, nil
			}
			if l.first == 0 {
				l.first = open
			}
			l.last, l.end, open = open, r.offset, 0
		default:
			return l, nil
		}
	}
}

type logReader struct {
	in     *bufio.Reader
	offset int64
	buf    []byte
}

type logEntry struct {
	meta   byte
	commit uint64
	value  []byte // until the next entry
}

// next reads an entry; false at the first one that is not whole.
func (r *logReader) next() (e logEntry, ok bool) {
	head, _ := r.in.Peek(2 + 3*binary.MaxVarintLen64)
	if len(head) < 5 {
		return e, false
	}
	at := 2
	var sizes [3]uint64 // key, value, expiry
	for i := range sizes {
		n, w := binary.Uvarint(head[at:])
		if w <= 0 {
			return e, false
		}
		sizes[i] = n
		at += w
	}
	if sizes[0] < 8 || sizes[0] > maxLogKey || sizes[1] > maxLogValue {
		return e, false
	}
	kl, n := int(sizes[0]), at+int(sizes[0]+sizes[1])+4
	r.buf = slices.Grow(r.buf[:0], n)[:n]
	if _, err := io.ReadFull(r.in, r.buf); err != nil {
		return e, false
	}
	if crc32.Checksum(r.buf[:n-4], castagnoli) != binary.BigEndian.Uint32(r.buf[n-4:]) {
		return e, false
	}
	r.offset += int64(n)
	e.meta = r.buf[0]
	e.commit = math.MaxUint64 - binary.BigEndian.Uint64(r.buf[at+kl-8:])
	e.value = r.buf[at+kl : n-4]
	return e, true
}

// inspectTables checks that the tables are those of the manifest, and whole. missing is a table that the manifest's last
// record adds and that is not there; 0 if there is no such table.
func (in *inspection) inspectTables() (missing uint64, err error) {
	m, err := readManifest(in.dir)
	if err != nil || m == nil {
		return 0, err
	}
	for id := range m.tables {
		newest, err := checkTable(tablePath(in.dir, id))
		if errors.Is(err, fs.ErrNotExist) && slices.Contains(m.lastCreated, id) {
			missing, in.manifestEnd = id, m.lastOffset
			continue
		}
		if err != nil {
			return 0, fmt.Errorf("%w: table %d: %v", ErrDamaged, id, err)
		}
		in.tabled = max(in.tabled, newest)
	}
	return missing, nil
}

func tablePath(dir string, id uint64) string { return filepath.Join(dir, fmt.Sprintf("%06d.sst", id)) }

// manifest is Badger's list of tables.
type manifest struct {
	tables      map[uint64]bool
	lastOffset  int64    // where the last record begins
	lastCreated []uint64 // tables that the last record adds, if that is all it does
}

// manifestHeader is Badger's magic text, no external version, and its version 8.
const manifestHeader = "Bdgr\x00\x00\x00\x08"

// readManifest reads the manifest as far as its records are whole; nil if there is none.
func readManifest(dir string) (*manifest, error) {
	b, err := os.ReadFile(filepath.Join(dir, "MANIFEST"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	if len(b) < 8 || string(b[:8]) != manifestHeader {
		return nil, fmt.Errorf("%w: the manifest has no proper beginning", ErrDamaged)
	}
	m := &manifest{tables: map[uint64]bool{}}
	for at := 8; at+8 <= len(b); {
		n := int64(binary.BigEndian.Uint32(b[at:]))
		if n > int64(len(b)) {
			return nil, fmt.Errorf("%w: the manifest is wrong at byte %d", ErrDamaged, at)
		}
		if int64(at)+8+n > int64(len(b)) {
			break // as a power loss leaves it
		}
		record := b[at+8 : at+8+int(n)]
		var set pb.ManifestChangeSet
		if crc32.Checksum(record, castagnoli) != binary.BigEndian.Uint32(b[at+4:]) || proto.Unmarshal(record, &set) != nil {
			return nil, fmt.Errorf("%w: the manifest is wrong at byte %d", ErrDamaged, at)
		}
		m.lastOffset, m.lastCreated = int64(at), nil
		onlyCreates := true
		for _, c := range set.Changes {
			if c.Op == pb.ManifestChange_CREATE {
				m.tables[c.Id] = true
				m.lastCreated = append(m.lastCreated, c.Id)
			} else {
				delete(m.tables, c.Id)
				onlyCreates = false
			}
		}
		if !onlyCreates {
			m.lastCreated = nil
		}
		at += 8 + int(n)
	}
	return m, nil
}

// checkTable verifies the checksums of a table's index and blocks, and returns the newest commit in it.
//
//	table: blocks, index, index length 4, checksum, checksum length 4
//	block: …, checksum, checksum length 4
func checkTable(path string) (newest uint64, err error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return 0, err
	}
	rest, sum, err := splitChecksum(b)
	if err != nil {
		return 0, fmt.Errorf("index: %w", err)
	}
	if len(rest) < 4 {
		return 0, fmt.Errorf("index: %w", errCutOff)
	}
	n := int64(binary.BigEndian.Uint32(rest[len(rest)-4:]))
	rest = rest[:len(rest)-4]
	if n > int64(len(rest)) {
		return 0, fmt.Errorf("index: %w", errCutOff)
	}
	rest = rest[int64(len(rest))-n:]
	if err := y.VerifyChecksum(rest, sum); err != nil {
		return 0, fmt.Errorf("index: %w", err)
	}
	index := fb.GetRootAsTableIndex(rest, 0)
	for i := range index.OffsetsLength() {
		var at fb.BlockOffset
		index.Offsets(&at, i)
		from, n := int64(at.Offset()), int64(at.Len())
		if from+n > int64(len(b)) {
			return 0, fmt.Errorf("block %d: %w", i, errCutOff)
		}
		block, sum, err := splitChecksum(b[from : from+n])
		if err == nil {
			err = y.VerifyChecksum(block, sum)
		}
		if err != nil {
			return 0, fmt.Errorf("block %d: %w", i, err)
		}
	}
	return index.MaxVersion(), nil
}

// splitChecksum takes checksum and checksum length from the end of b.
func splitChecksum(b []byte) (rest []byte, sum *pb.Checksum, err error) {
	if len(b) < 4 {
		return nil, nil, errCutOff
	}
	n := int64(binary.BigEndian.Uint32(b[len(b)-4:]))
	b = b[:len(b)-4]
	if n > int64(len(b)) {
		return nil, nil, errCutOff
	}
	sum = &pb.Checksum{}
	if err := proto.Unmarshal(b[int64(len(b))-n:], sum); err != nil {
		return nil, nil, err
	}
	if sum.Algo != pb.Checksum_CRC32C && sum.Algo != pb.Checksum_XXHash64 {
		return nil, nil, errors.New("unknown checksum")
	}
	return b[:int64(len(b))-n], sum, nil
}

// clearHeader writes the key ID of a log that is not encrypted.
func clearHeader(path string) error {
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteAt(make([]byte, 8), 0)
	return errors.Join(err, f.Sync(), f.Close())
}

// repair makes the files fit for Badger, losing nothing that was ever readable as a whole. It returns in words what
// it had to put aside.
func (in *inspection) repair() (string, error) {
	for _, l := range in.empty {
		if err := os.Remove(logPath(in.dir, l.fid)); err != nil {
			return "", err
		}
	}
	for _, l := range in.logs {
		if !l.header {
			if err := clearHeader(logPath(in.dir, l.fid)); err != nil {
				return "", err
			}
		}
		if l.size > l.end { // what follows is zeroes or a torn transaction
			if err := os.Truncate(logPath(in.dir, l.fid), l.end); err != nil {
				return "", err
			}
		}
	}
	loss := ""
	for _, l := range in.behindGap {
		path := logPath(in.dir, l.fid)
		if err := errors.Join(os.Truncate(path, l.end), os.Rename(path, path+".aside")); err != nil {
			return "", err
		}
	}
	if n := len(in.behindGap); n > 0 {
		loss = fmt.Sprintf("a log is damaged; commits %d to %d, which came after, were put aside as %s.aside and following",
			in.behindGap[0].first, in.behindGap[n-1].last, logPath(in.dir, in.behindGap[0].fid))
	}
	if in.manifestEnd >= 0 {
		if err := os.Truncate(filepath.Join(in.dir, "MANIFEST"), in.manifestEnd); err != nil {
			return "", err
		}
	}
	// The value log is empty by our options, and the key registry as long as nothing is encrypted; at most their headers could
	// be damaged. Badger makes them anew.
	entries, err := os.ReadDir(in.dir)
	if err != nil {
		return "", err
	}
	for _, e := range entries {
		if strings.HasSuffix(e.Name(), ".vlog") || e.Name() == "DISCARD" || e.Name() == "KEYREGISTRY" {
			if err := os.Remove(filepath.Join(in.dir, e.Name())); err != nil {
				return "", err
			}
		}
	}
	return loss, syncDir(in.dir)
}
