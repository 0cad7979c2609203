package main

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"

	"github.com/plexus-p2p/plexus/p2ptransport"
)

// readMeshKey reads the file of --mesh-key.
func readMeshKey(path string) (*p2ptransport.MeshKey, error) {
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("--mesh-key: there is no file %s; \"plexus mesh-key %s\" makes a new key, which each node of the mesh needs a copy of", path, path)
	}
	if err != nil {
		return nil, fmt.Errorf("--mesh-key: %w", err)
	}
	defer f.Close()
	key, err := p2ptransport.ReadMeshKey(f)
	if err != nil {
		return nil, fmt.Errorf("--mesh-key: %s is no mesh key: %w; \"plexus mesh-key FILE\" makes one", path, err)
	}
	return key, nil
}

// makeMeshKey writes a new key into a file that is not there yet, readable by its owner only.
func makeMeshKey(args []string, out io.Writer) error {
	if len(args) != 1 || len(args[0]) == 0 || args[0][0] == '-' {
		return errors.New("usage: plexus mesh-key FILE, which writes a new key into FILE")
	}
	path := args[0]
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("%s is there already and stays as it is: nodes may be using that key", path)
	}
	if err != nil {
		return fmt.Errorf("write mesh key: %w", err)
	}
	_, err = io.WriteString(f, p2ptransport.NewMeshKey().String())
	if err = errors.Join(err, f.Close()); err != nil {
		return errors.Join(fmt.Errorf("write mesh key: %w", err), os.Remove(path))
	}
	fmt.Fprintf(out, "%s holds a new key. Copy it to each node of the private mesh, and start them with --mesh-key.\nWhoever has it is in.\n", path)
	return nil
}
