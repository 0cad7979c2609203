package clientapi

import (
	"context"
	"crypto/rand"
	"crypto/subtle"
	"encoding/base64"
	"fmt"
	"strings"

	"golang.org/x/crypto/argon2"
)

// Passwords are hashed with argon2id at OWASP's smallest recommended cost, so that small devices can bear it.
const (
	argonMemory  = 19 << 10 // KiB
	argonTime    = 2
	argonThreads = 1
	argonKeyLen  = 32
	argonSaltLen = 16

	maxPassword = 512 // bytes: hashing must not cost more than argon2 itself
)

// hashing lets one password be hashed at a time, so that many logins at once do not need many times argonMemory.
type hashing struct {
	turn         chan struct{}
	memory, time uint32 // what a new hash costs; one that exists has its own in it
}

func newHashing() hashing { return hashing{make(chan struct{}, 1), argonMemory, argonTime} }

func (h hashing) key(ctx context.Context, password string, salt []byte, time, memory uint32, threads uint8, length uint32) ([]byte, error) {
	select {
	case h.turn <- struct{}{}:
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	defer func() { <-h.turn }()
	return argon2.IDKey([]byte(password), salt, time, memory, threads, length), nil
}

// hash returns the password's hash as a PHC string.
func (h hashing) hash(ctx context.Context, password string) (string, error) {
	salt := make([]byte, argonSaltLen)
	rand.Read(salt) // never fails
	key, err := h.key(ctx, password, salt, h.time, h.memory, argonThreads, argonKeyLen)
	if err != nil {
		return "", err
	}
	b64 := base64.RawStdEncoding.EncodeToString
	return fmt.Sprintf("$argon2id$v=%d$m=%d,t=%d,p=%d$%s$%s",
		argon2.Version, h.memory, h.time, argonThreads, b64(salt), b64(key)), nil
}

// matches says whether phc, which hash returned, is that of the password. An empty phc matches none.
func (h hashing) matches(ctx context.Context, phc, password string) (bool, error) {
	if phc == "" || len(password) > maxPassword {
		return false, nil
	}
	parts := strings.Split(phc, "$")
	if len(parts) != 6 || parts[1] != "argon2id" {
		return false, fmt.Errorf("password hash of an unknown kind")
	}
	var (
		version      int
		memory, time uint32
		threads      uint8
	)
	if _, err := fmt.Sscanf(parts[2], "v=%d", &version); err != nil || version != argon2.Version {
		return false, fmt.Errorf("password hash of an unknown version")
	}
	if _, err := fmt.Sscanf(parts[3], "m=%d,t=%d,p=%d", &memory, &time, &threads); err != nil {
		return false, fmt.Errorf("password hash with unknown parameters: %v", err)
	}
	salt, err := base64.RawStdEncoding.DecodeString(parts[4])
	if err != nil {
		return false, fmt.Errorf("password hash: %v", err)
	}
	want, err := base64.RawStdEncoding.DecodeString(parts[5])
	if err != nil {
		return false, fmt.Errorf("password hash: %v", err)
	}
	got, err := h.key(ctx, password, salt, time, memory, threads, uint32(len(want)))
	if err != nil {
		return false, err
	}
	return subtle.ConstantTimeCompare(got, want) == 1, nil
}
