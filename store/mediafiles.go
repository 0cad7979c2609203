package store

import (
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
)

// Files of media lie in the directory "media" of the store, in 256 directories by the first byte of their names:
//
//	media/new/…          being written
//	media/ab/cdef…       62 digits
//
// A name is a keyed hash, so that neither names nor their number of files tell what is here to who has no key. All files are created by newMediaFile and
// opened by openMediaFile, and by nobody else: what lies between a file's bytes and its content has its place there.

const (
	mediaDirName = "media"
	mediaNewName = "new"
	// mediaCheckFree is after how many bytes written it is looked whether the disk has room; less than lowWater serve Badger alone.
	mediaCheckFree = 4 << 20
)

var keyMediaName = key(tableMeta).str("media").str("name key")

// mediaDir is the directory of a store; made when it is first needed.
type mediaDir struct {
	mu   sync.Mutex // also while the directory is made
	path string     // "" as long as it is not known to be there
}

// mediaPath is the directory of media files. A store in memory has a temporary one, which Close removes.
func (s *Store) mediaPath() (string, error) {
	s.media.mu.Lock()
	defer s.media.mu.Unlock()
	if s.media.path != "" {
		return s.media.path, nil
	}
	path := filepath.Join(s.dir, mediaDirName)
	if s.dir == "" {
		var err error
		if path, err = os.MkdirTemp("", "plexus-media-"); err != nil {
			return "", err
		}
	}
	if err := os.MkdirAll(filepath.Join(path, mediaNewName), 0o700); err != nil {
		return "", err
	}
	if s.dir != "" {
		if err := errors.Join(syncDir(path), syncDir(s.dir)); err != nil {
			return "", err
		}
	}
	s.media.path = path
	return path, nil
}

// closeMedia removes the directory of a store in memory.
func (s *Store) closeMedia() error {
	s.media.mu.Lock()
	defer s.media.mu.Unlock()
	if s.dir == "" && s.media.path != "" {
		return os.RemoveAll(s.media.path)
	}
	return nil
}

// MediaWriter takes in the content of media, which nobody sees before KeepMedia or KeepThumbnail. It is for one goroutine; one of the two, or
// Abort, must end it.
type MediaWriter struct {
	s       *Store
	file    *os.File
	hash    hash.Hash
	size    int64
	checked int64 // up to where there was room
}

// NewMedia begins a file; ErrDiskFull.
func (s *Store) NewMedia() (*MediaWriter, error) {
	dir, err := s.mediaPath()
	if err != nil {
		return nil, fmt.Errorf("media file: %w", err)
	}
	w := &MediaWriter{s: s, hash: sha256.New()}
	if err := w.checkRoom(dir); err != nil {
		return nil, err
	}
	if w.file, err = newMediaFile(filepath.Join(dir, mediaNewName)); err != nil {
		return nil, fmt.Errorf("media file: %w", err)
	}
	return w, nil
}

func (w *MediaWriter) checkRoom(dir string) error {
	free, err := freeSpace(dir)
	if err == nil && !w.s.opts.small && free < lowWater+mediaCheckFree {
		err = ErrDiskFull
	}
	return err
}

// Write adds to the content; ErrDiskFull.
func (w *MediaWriter) Write(b []byte) (int, error) {
	if w.size-w.checked >= mediaCheckFree {
		if err := w.checkRoom(filepath.Dir(w.file.Name())); err != nil {
			return 0, err
		}
		w.checked = w.size
	}
	n, err := w.file.Write(b)
	w.hash.Write(b[:n])
	w.size += int64(n)
	return n, err
}

// Size is how much has been written.
func (w *MediaWriter) Size() int64 { return w.size }

// SHA256 is the hash of what has been written.
func (w *MediaWriter) SHA256() []byte { return w.hash.Sum(nil) }

// Reopen opens what has been written for reading. It stays readable where the file is not kept.
func (w *MediaWriter) Reopen() (*MediaFile, error) { return openMediaFile(w.file.Name()) }

// Abort ends the writer and removes the file.
func (w *MediaWriter) Abort() {
	w.file.Close()
	os.Remove(w.file.Name())
}

// MediaFile is the content of media, open for reading.
type MediaFile struct {
	file *os.File
	size int64
}

// OpenMedia opens the content of a file that a record names; ErrNotFound if it is gone.
func (s *Store) OpenMedia(file string) (*MediaFile, error) {
	path, err := s.mediaFilePath(file)
	if err != nil {
		return nil, err
	}
	f, err := openMediaFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("file of media: %w", ErrNotFound)
	}
	return f, err
}

// Read, Seek and Close are those of a file.
func (f *MediaFile) Read(b []byte) (int, error)                   { return f.file.Read(b) }
func (f *MediaFile) Seek(offset int64, whence int) (int64, error) { return f.file.Seek(offset, whence) }
func (f *MediaFile) Close() error                                 { return f.file.Close() }

// Size is the length of the content.
func (f *MediaFile) Size() int64 { return f.size }

func newMediaFile(dir string) (*os.File, error) { return os.CreateTemp(dir, "") }

func openMediaFile(path string) (*MediaFile, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	fi, err := f.Stat()
	if err != nil {
		f.Close()
		return nil, err
	}
	return &MediaFile{f, fi.Size()}, nil
}

func (s *Store) mediaFilePath(file string) (string, error) {
	if raw, err := hex.DecodeString(file); err != nil || len(raw) != sha256.Size {
		return "", ErrNotFound
	}
	dir, err := s.mediaPath()
	return filepath.Join(dir, file[:2], file[2:]), err
}

// mediaIsThere says whether the record's file exists.
func (s *Store) mediaIsThere(m *Media) bool {
	path, err := s.mediaFilePath(m.File)
	if err == nil {
		_, err = os.Stat(path)
	}
	return err == nil
}

// placeMedia makes what was written durable under a name of its own, for which there is no record yet. It ends w.
func (s *Store) placeMedia(ctx context.Context, w *MediaWriter, id MediaID, variant string) (name [sha256.Size]byte, err error) {
	defer func() {
		if err != nil {
			os.Remove(w.file.Name())
		}
	}()
	if err := errors.Join(w.file.Sync(), w.file.Close()); err != nil {
		return name, fmt.Errorf("media file: %w", err)
	}
	nameKey, err := s.mediaNameKey(ctx)
	if err != nil {
		return name, err
	}
	// Two that bring the same media at one time must not share a file: whoever comes second takes his away again.
	var salt [16]byte
	rand.Read(salt[:])
	mac := hmac.New(sha256.New, nameKey)
	mac.Write(key(tableMedia).str(string(id.Server)).str(id.ID).str(variant).bytes(salt[:]))
	mac.Sum(name[:0])
	path, err := s.mediaFilePath(hex.EncodeToString(name[:]))
	if err != nil {
		return name, err
	}
	dir := filepath.Dir(path)
	switch err := os.Mkdir(dir, 0o700); {
	case err == nil:
		if err := syncDir(filepath.Dir(dir)); err != nil {
			return name, fmt.Errorf("media file: %w", err)
		}
	case !errors.Is(err, fs.ErrExist):
		return name, fmt.Errorf("media file: %w", err)
	}
	if err := os.Rename(w.file.Name(), path); err != nil {
		return name, fmt.Errorf("media file: %w", err)
	}
	if err := syncDir(dir); err != nil {
		os.Remove(path)
		return name, fmt.Errorf("media file: %w", err)
	}
	return name, nil
}

// mediaNameKey is the key of file names, made when it is first needed.
func (s *Store) mediaNameKey(ctx context.Context) (nameKey []byte, err error) {
	err = s.View(func(r *Reader) error { nameKey, err = r.get(keyMediaName); return err })
	if !errors.Is(err, ErrNotFound) {
		return nameKey, err
	}
	fresh := make([]byte, sha256.Size)
	rand.Read(fresh)
	_, err = s.Update(ctx, func(tx *Tx) error {
		nameKey, err = tx.get(keyMediaName)
		if errors.Is(err, ErrNotFound) {
			nameKey = fresh
			err = tx.put(keyMediaName, fresh)
		}
		return err
	})
	return nameKey, err
}

// removeMedia removes files whose records are gone. What cannot be removed now, sweepMedia finds.
func (s *Store) removeMedia(files ...string) {
	for _, file := range files {
		path, err := s.mediaFilePath(file)
		if err == nil {
			err = os.Remove(path)
		}
		if err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, ErrNotFound) {
			s.log.Warn("a file of media cannot be removed now", "err", err)
		}
	}
}

// sweepMedia removes files without a record: they were being written, or about to be removed, when the process ended. For Open alone, before
// anything is written.
func (s *Store) sweepMedia(r *Reader) error {
	if s.dir == "" {
		return nil
	}
	root := filepath.Join(s.dir, mediaDirName)
	dirs, err := os.ReadDir(root)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, dir := range dirs {
		if err := s.sweepMediaDir(r, root, dir.Name()); err != nil {
			return fmt.Errorf("look through media: %w", err)
		}
	}
	return nil
}

// sweepBatch is how many names of files are in memory at one time.
const sweepBatch = 1000

func (s *Store) sweepMediaDir(r *Reader, root, name string) error {
	dir, err := os.Open(filepath.Join(root, name))
	if err != nil {
		return err
	}
	defer dir.Close()
	for {
		names, err := dir.Readdirnames(sweepBatch)
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		for _, file := range names {
			raw, err := hex.DecodeString(name + file)
			if name != mediaNewName && (err != nil || len(raw) != sha256.Size) {
				continue // not ours
			}
			if name != mediaNewName {
				if has, err := r.has(key(tableMediaFile).bytes(raw)); err != nil || has {
					if err != nil {
						return err
					}
					continue
				}
			}
			if err := os.Remove(filepath.Join(root, name, file)); err != nil {
				return err
			}
		}
	}
}
