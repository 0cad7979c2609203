package eventgraph

import (
	"crypto/ed25519"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/plexus-p2p/plexus/eventgraph/canonicaljson"
)

// testNode makes an identity with one device, as plexus does.
func testNode(n byte) testNodeKeys {
	identity, device := testKey(n), testKey(n+100)
	device.Server = identity.Server
	return testNodeKeys{identity, device}
}

type testNodeKeys struct{ identity, device SigningKey }

func public(k SigningKey) ed25519.PublicKey { return k.Private.Public().(ed25519.PublicKey) }

func certified(k SigningKey, from, revoked int64) CertifiedDevice {
	p := NewPeerID(public(k))
	return CertifiedDevice{p, p.KeyID(), encodeBase64(public(k)), encodeBase64(make([]byte, 32)), from, revoked}
}

func TestCertificate(t *testing.T) {
	t.Parallel()
	n := testNode(1)
	gone := testKey(50)
	c, err := SignCertificate(n.identity, 3, []CertifiedDevice{certified(n.device, 1000, 0), certified(gone, 500, 900)})
	if err != nil {
		t.Fatal(err)
	}
	again, err := ParseCertificate(c.Raw)
	if err != nil || again.ServerName != n.identity.Server || again.Seq != 3 || !slices.Equal(again.Devices, c.Devices) || string(again.Raw) != string(c.Raw) {
		t.Errorf("%+v, %v", again, err)
	}
	for _, x := range []struct {
		k    SigningKey
		ts   int64
		want bool
	}{{n.device, 999, false}, {n.device, 1000, true}, {n.device, 1 << 50, true}, {gone, 499, false}, {gone, 500, true}, {gone, 899, true}, {gone, 900, false}, {n.identity, 1000, false}} {
		if d, ok := c.Device(NewPeerID(public(x.k)), x.ts); ok != x.want || ok && d.KeyID != NewPeerID(public(x.k)).KeyID() {
			t.Errorf("device %s at %d: %v", x.k.ID, x.ts, ok)
		}
	}
	if c, err := SignCertificate(n.identity, 0, nil); err != nil || len(c.Devices) != 0 {
		t.Errorf("without devices: %v", err)
	}
	zoned := n.identity
	zoned.Server += ".example.org"
	if _, err := SignCertificate(zoned, 1, c.Devices); err != nil {
		t.Errorf("of a name with a zone: %v", err)
	}

	// Two certificates under one seq: what both say counts.
	other := must(SignCertificate(n.identity, 3, []CertifiedDevice{certified(gone, 500, 0), certified(n.device, 1000, 0)}))
	if both := c.Common(other); len(both.Devices) != 1 || both.Devices[0] != certified(n.device, 1000, 0) || len(c.Devices) != 2 {
		t.Errorf("common: %+v", both.Devices)
	}
}

func TestCertificateRefused(t *testing.T) {
	t.Parallel()
	n, stranger := testNode(1), testNode(2)
	sign := func(k SigningKey, object string) []byte { return must(SignJSON([]byte(object), k)) }
	device := string(must(json.Marshal(certified(n.device, 1000, 0))))
	name := string(n.identity.Server)
	whole := func(devices string) string {
		return fmt.Sprintf(`{"server_name":%q,"seq":1,"devices":[%s]}`, name, devices)
	}
	with := func(old, new string) string {
		if !strings.Contains(device, old) {
			t.Fatalf("%s has no %s", device, old)
		}
		return strings.Replace(device, old, new, 1)
	}
	if _, err := ParseCertificate(sign(n.identity, whole(device))); err != nil {
		t.Fatalf("the whole: %v", err)
	}
	otherID := n.identity
	otherID.ID = "ed25519:1"
	if _, err := ParseCertificate(sign(otherID, whole(device))); err != nil {
		t.Errorf("identity key under another ID: %v", err)
	}
	forged := stranger.identity
	forged.Server = n.identity.Server
	var many []string
	for i := range maxDevices + 1 {
		many = append(many, string(must(json.Marshal(certified(SigningKey{Private: ed25519.NewKeyFromSeed(fmt.Appendf(nil, "%032d", i))}, 1, 0)))))
	}
	if _, err := ParseCertificate(sign(n.identity, whole(strings.Join(many[:maxDevices], ",")))); err != nil {
		t.Errorf("%d devices: %v", maxDevices, err)
	}
	for what, c := range map[string]struct {
		raw  []byte
		want error
	}{
		"nothing":                   {nil, canonicaljson.ErrSyntax},
		"a list":                    {[]byte("[]"), canonicaljson.ErrSyntax},
		"unsigned":                  {[]byte(whole(device)), ErrSignature},
		"signed by the device":      {sign(n.device, whole(device)), ErrSignature},
		"signed by a stranger":      {sign(stranger.identity, whole(device)), ErrSignature},
		"signed in another's name":  {sign(forged, whole(device)), ErrSignature},
		"changed":                   {[]byte(strings.Replace(string(sign(n.identity, whole(device))), `"seq":1`, `"seq":2`, 1)), ErrSignature},
		"no server name":            {sign(n.identity, `{"seq":1,"devices":[]}`), ErrFormat},
		"a domain as name":          {sign(n.identity, `{"server_name":"example.org","seq":1,"devices":[]}`), ErrFormat},
		"no seq":                    {sign(n.identity, `{"server_name":"`+name+`","devices":[]}`), ErrFormat},
		"negative seq":              {sign(n.identity, `{"server_name":"`+name+`","seq":-1,"devices":[]}`), ErrFormat},
		"seq a string":              {sign(n.identity, `{"server_name":"`+name+`","seq":"1","devices":[]}`), ErrFormat},
		"no devices":                {sign(n.identity, `{"server_name":"`+name+`","seq":1}`), ErrFormat},
		"devices an object":         {sign(n.identity, `{"server_name":"`+name+`","seq":1,"devices":{}}`), ErrFormat},
		"device a string":           {sign(n.identity, whole(`"x"`)), ErrFormat},
		"device twice":              {sign(n.identity, whole(device+","+device)), ErrFormat},
		"peer ID no key":            {sign(n.identity, whole(with(string(n.device.ID[8:]), "x"))), ErrFormat},
		"key ID of another":         {sign(n.identity, whole(with(string(n.device.ID), string(n.identity.ID)))), ErrFormat},
		"key of another":            {sign(n.identity, whole(with(encodeBase64(public(n.device)), encodeBase64(public(n.identity))))), ErrFormat},
		"key padded":                {sign(n.identity, whole(with(encodeBase64(public(n.device)), encodeBase64(public(n.device))+"="))), ErrFormat},
		"box key short":             {sign(n.identity, whole(with(strings.Repeat("A", 43), "AAAA"))), ErrFormat},
		"from_ts a string":          {sign(n.identity, whole(with("1000", `"1000"`))), ErrFormat},
		"from_ts negative":          {sign(n.identity, whole(with("1000", "-1"))), ErrFormat},
		"revoked at 0":              {sign(n.identity, whole(with(`"from_ts"`, `"revoked_ts":0,"from_ts"`))), ErrFormat},
		"too many devices":          {sign(n.identity, whole(strings.Join(many, ","))), ErrTooLarge},
		"too many bytes":            {sign(n.identity, fmt.Sprintf(`{"x":%q,%s`, strings.Repeat("x", maxCertificate), whole(device)[1:])), ErrTooLarge},
		"repeated members":          {[]byte(strings.Replace(string(sign(n.identity, whole(device))), `"seq":1`, `"seq":1,"seq":1`, 1)), canonicaljson.ErrSyntax},
		"a fraction":                {[]byte(strings.Replace(string(sign(n.identity, whole(device))), `"seq":1`, `"seq":1.0`, 1)), canonicaljson.ErrSyntax},
		"signed under other things": {[]byte(strings.Replace(string(sign(n.identity, whole(device))), `"ed25519:`, `"rsa:`, -1)), nil},
	} {
		_, err := ParseCertificate(c.raw)
		if err == nil || !errors.Is(err, c.want) && c.want != nil {
			t.Errorf("%s: %v, want %v", what, err, c.want)
		}
	}
}

const day = 24 * 60 * 60 * 1000

func TestKeyDocument(t *testing.T) {
	t.Parallel()
	const now = 1_700_000_000_000
	n, gone, later, stranger := testNode(1), testKey(50), testKey(51), testKey(52)
	id := func(k SigningKey) KeyID { return NewPeerID(public(k)).KeyID() }
	cert := must(SignCertificate(n.identity, 1, []CertifiedDevice{
		certified(n.device, now-100*day, 0), certified(gone, now-300*day, now-100*day), certified(later, now+day, 0)}))
	old := map[KeyID]OldVerifyKey{
		id(gone):         {public(gone), now - 90*day},
		id(stranger):     {public(stranger), now},
		"ed25519:before": {public(n.identity), now - 200*day},
	}
	full, err := SignKeyDocument(n.identity.Server, []SigningKey{n.device, n.identity}, old, cert, now+7*day)
	if err != nil {
		t.Fatal(err)
	}
	reparsed, err := ParseKeyDocument(full.Raw)
	if err != nil || string(reparsed.Raw) != string(full.Raw) || reparsed.ValidUntilTS != now+7*day || reparsed.ServerName != n.identity.Server {
		t.Fatalf("%+v, %v", reparsed, err)
	}
	if got, want := slices.Sorted(maps.Keys(reparsed.OldVerifyKeys)), []KeyID{id(gone), "ed25519:before"}; !slices.Equal(got, want) {
		t.Errorf("old keys %v, want %v: those that were never certified do not count", got, want)
	}
	away := must(SignKeyDocument(n.identity.Server, []SigningKey{n.device}, nil, cert, now+7*day))
	alone := testKey(60)
	alone.ID = "ed25519:auto"
	plain := must(SignKeyDocument(alone.Server, []SigningKey{alone}, nil, nil, now+7*day))

	for _, c := range []struct {
		what   string
		d      *KeyDocument
		id     KeyID
		ts     int64
		strict bool
		key    SigningKey
		want   error
	}{
		{"device now", full, n.device.ID, now, true, n.device, nil},
		{"device at its first moment", full, n.device.ID, now - 100*day, true, n.device, nil},
		{"device before it", full, n.device.ID, now - 100*day - 1, true, n.device, ErrSignature},
		{"device before it, old room version", full, n.device.ID, now - 100*day - 1, false, n.device, ErrSignature},
		{"device at the end", full, n.device.ID, now + 7*day, true, n.device, nil},
		{"device after it", full, n.device.ID, now + 7*day + 1, true, n.device, ErrKeyNotValid},
		{"device after it, old room version", full, n.device.ID, now + 7*day + 1, false, n.device, nil},
		{"identity", full, n.identity.ID, now, true, n.identity, nil},
		{"identity long ago", full, n.identity.ID, 0, true, n.identity, nil},
		{"identity after the end", full, n.identity.ID, now + 8*day, true, n.identity, ErrKeyNotValid},
		{"identity away", away, n.identity.ID, now, true, n.identity, nil},
		{"identity away, after the end", away, n.identity.ID, now + 8*day, true, n.identity, ErrKeyNotValid},
		{"identity under an old ID", full, "ed25519:before", now - 200*day, true, n.identity, nil},
		{"identity under an old ID, expired", full, "ed25519:before", now - 200*day + 1, true, n.identity, ErrSignature},
		{"replaced device in its time", full, id(gone), now - 101*day, true, gone, nil},
		{"replaced device, revoked before it expired", full, id(gone), now - 95*day, true, gone, ErrSignature},
		{"replaced device, not listed", away, id(gone), now - 101*day, true, gone, nil},
		{"replaced device, not listed, revoked", away, id(gone), now - 100*day, false, gone, ErrSignature},
		{"future device", full, id(later), now, true, later, ErrSignature},
		{"future device in its time", full, id(later), now + day, true, later, nil},
		{"never certified", full, id(stranger), now - day, true, stranger, ErrKeyUnknown},
		{"unknown", full, "ed25519:1", now, true, n.device, ErrKeyUnknown},
		{"plain", plain, "ed25519:auto", now, true, alone, nil},
		{"plain by its other ID", plain, id(alone), now, true, alone, nil},
		{"plain, unknown", plain, n.device.ID, now, true, alone, ErrKeyUnknown},
	} {
		key, err := c.d.KeyFor(c.id, c.ts, c.strict)
		if (c.want == nil) != (err == nil) || !errors.Is(err, c.want) || err == nil && !key.Equal(public(c.key)) {
			t.Errorf("%s: %v, want %v", c.what, err, c.want)
		}
	}

	peer := func(k SigningKey) PeerID { return NewPeerID(public(k)) }
	for _, c := range []struct {
		what string
		d    *KeyDocument
		p    PeerID
		ts   int64
		want bool
	}{
		{"device", full, peer(n.device), now, true},
		{"device, document too old", full, peer(n.device), now + 8*day, false},
		{"identity", full, peer(n.identity), now, true},
		{"identity away", away, peer(n.identity), now, true},
		{"revoked", full, peer(gone), now, false},
		{"future", full, peer(later), now, false},
		{"old but never certified", full, peer(stranger), now, false},
		{"plain", plain, peer(alone), now, true},
		{"another", plain, peer(n.device), now, false},
		{"nobody", plain, "", now, false},
	} {
		if got := c.d.Speaks(c.p, c.ts); got != c.want {
			t.Errorf("%s speaks: %v", c.what, got)
		}
	}

	revoked := must(SignCertificate(n.identity, 2, []CertifiedDevice{certified(n.device, now-100*day, now)}))
	if _, err := full.Under(revoked).KeyFor(n.device.ID, now, true); !errors.Is(err, ErrSignature) {
		t.Errorf("under a certificate that revokes it: %v", err)
	}
}

func TestKeyDocumentRefused(t *testing.T) {
	t.Parallel()
	n, stranger := testNode(1), testNode(2)
	cert := must(SignCertificate(n.identity, 1, []CertifiedDevice{certified(n.device, 1000, 0)}))
	name, device := string(n.identity.Server), encodeBase64(public(n.device))
	verifyKeys := fmt.Sprintf(`"verify_keys":{%q:{"key":%q}}`, n.device.ID, device)
	whole := fmt.Sprintf(`{"server_name":%q,%s,"valid_until_ts":5,"plexus.certificate":%s}`, name, verifyKeys, cert.Raw)
	sign := func(object string, keys ...SigningKey) []byte {
		raw := []byte(object)
		for _, k := range keys {
			k.Server = n.identity.Server
			raw = must(SignJSON(raw, k))
		}
		return raw
	}
	with := func(old, new string) string {
		if !strings.Contains(whole, old) {
			t.Fatalf("no %s in %s", old, whole)
		}
		return strings.Replace(whole, old, new, 1)
	}
	var many []string
	for i := range maxOldKeys + 1 {
		many = append(many, fmt.Sprintf(`"ed25519:%d":{"key":%q,"expired_ts":5}`, i, device))
	}
	others := must(SignCertificate(stranger.identity, 1, []CertifiedDevice{certified(n.device, 1000, 0)}))
	for what, raw := range map[string][]byte{
		"the whole":            sign(whole, n.device),
		"signed by more":       sign(whole, n.device, stranger.device),
		"unknown algorithm":    sign(with(`"verify_keys":{`, `"verify_keys":{"rsa:1":{"key":"x"},`), n.device),
		"unknown members":      sign(with(`"valid_until_ts":5`, `"valid_until_ts":5,"org.example":{"x":[1]}`), n.device),
		"unsigned fraction":    []byte(strings.Replace(string(sign(whole, n.device)), `{"plexus`, `{"unsigned":0.5,"plexus`, 1)),
		"as many old keys":     sign(with(`"valid_until_ts"`, `"old_verify_keys":{`+strings.Join(many[:maxOldKeys], ",")+`},"valid_until_ts"`), n.device),
		"old key unknown kind": sign(with(`"valid_until_ts"`, `"old_verify_keys":{"rsa:1":{}},"valid_until_ts"`), n.device),
	} {
		if _, err := ParseKeyDocument(raw); err != nil {
			t.Errorf("%s: %v", what, err)
		}
	}
	for what, c := range map[string]struct {
		raw  []byte
		want error
	}{
		"nothing":                    {nil, canonicaljson.ErrSyntax},
		"unsigned":                   {[]byte(whole), ErrSignature},
		"signed by another":          {sign(whole, n.identity), ErrSignature},
		"one key has not signed":     {sign(with(`"verify_keys":{`, fmt.Sprintf(`"verify_keys":{%q:{"key":%q},`, n.identity.ID, encodeBase64(public(n.identity)))), n.device), ErrSignature},
		"changed":                    {[]byte(strings.Replace(string(sign(whole, n.device)), `"valid_until_ts":5`, `"valid_until_ts":6`, 1)), ErrSignature},
		"no certificate":             {sign(with(`"plexus.certificate"`, `"x"`), n.device), ErrSignature},
		"another's certificate":      {sign(with(string(cert.Raw), string(others.Raw)), n.device), ErrFormat},
		"certificate broken":         {sign(with(`"seq":1`, `"seq":2`), n.device), ErrSignature},
		"certificate null":           {sign(with(string(cert.Raw), "null"), n.device), canonicaljson.ErrSyntax},
		"key not certified":          {sign(with(fmt.Sprintf(`%q:{"key":%q}`, n.device.ID, device), fmt.Sprintf(`%q:{"key":%q}`, stranger.device.ID, encodeBase64(public(stranger.device)))), stranger.device), ErrSignature},
		"no keys":                    {sign(with(verifyKeys, `"verify_keys":{}`), n.device), ErrSignature},
		"no known keys":              {sign(with(verifyKeys, `"verify_keys":{"rsa:1":{"key":"x"}}`), n.device), ErrSignature},
		"verify_keys a list":         {sign(with(verifyKeys, `"verify_keys":[]`), n.device), ErrFormat},
		"verify_keys absent":         {sign(with(verifyKeys+",", ``), n.device), ErrFormat},
		"key not a point":            {sign(with(device, encodeBase64(make([]byte, 32))), n.device), nil},
		"key a number":               {sign(with(`{"key":`+fmt.Sprintf("%q", device)+`}}`, `{"key":1}}`), n.device), ErrFormat},
		"server name absent":         {sign(with(`"server_name"`, `"x"`), n.device), ErrFormat},
		"server name not a key":      {sign(fmt.Sprintf(`{"server_name":"example.org",%s,"valid_until_ts":5}`, verifyKeys), n.device), ErrFormat},
		"valid_until_ts absent":      {sign(with(`"valid_until_ts":5`, `"x":5`), n.device), ErrFormat},
		"valid_until_ts negative":    {sign(with(`"valid_until_ts":5`, `"valid_until_ts":-5`), n.device), ErrFormat},
		"key both old and current":   {sign(with(`"valid_until_ts"`, fmt.Sprintf(`"old_verify_keys":{%q:{"key":%q,"expired_ts":5}},"valid_until_ts"`, n.device.ID, device)), n.device), ErrFormat},
		"old key without an end":     {sign(with(`"valid_until_ts"`, fmt.Sprintf(`"old_verify_keys":{"ed25519:1":{"key":%q}},"valid_until_ts"`, device)), n.device), ErrFormat},
		"old keys a list":            {sign(with(`"valid_until_ts"`, `"old_verify_keys":[],"valid_until_ts"`), n.device), ErrFormat},
		"too many old keys":          {sign(with(`"valid_until_ts"`, `"old_verify_keys":{`+strings.Join(many, ",")+`},"valid_until_ts"`), n.device), ErrTooLarge},
		"too many keys":              {sign(with(verifyKeys, `"verify_keys":{`+strings.ReplaceAll(strings.Join(many[:maxVerifyKeys+1], ","), `,"expired_ts":5`, "")+`}`), n.device), ErrTooLarge},
		"too many bytes":             {sign(with(`"valid_until_ts"`, `"x":"`+strings.Repeat("x", maxKeyDocument)+`","valid_until_ts"`), n.device), ErrTooLarge},
		"repeated members":           {[]byte(strings.Replace(string(sign(whole, n.device)), `"valid_until_ts":5`, `"valid_until_ts":5,"valid_until_ts":5`, 1)), canonicaljson.ErrSyntax},
		"key ID of other characters": {sign(with(`"verify_keys":{`, fmt.Sprintf(`"verify_keys":{"ed25519:a-b":{"key":%q},`, device)), n.device), ErrFormat},
	} {
		_, err := ParseKeyDocument(c.raw)
		if err == nil || !errors.Is(err, c.want) && c.want != nil {
			t.Errorf("%s: %v, want %v", what, err, c.want)
		}
	}
	if _, err := SignKeyDocument(n.identity.Server, []SigningKey{n.device, n.device}, nil, cert, 5); err == nil {
		t.Error("two keys under one ID")
	}
	if _, err := SignKeyDocument(n.identity.Server, []SigningKey{n.device}, nil, nil, 5); !errors.Is(err, ErrSignature) {
		t.Errorf("a device without certificate: %v", err)
	}
	if _, err := SignKeyDocument(n.identity.Server, []SigningKey{{ID: "ed25519:1"}}, nil, nil, 5); err == nil {
		t.Error("a key without its private half")
	}
}

func FuzzParseCertificate(f *testing.F) {
	n := testNode(1)
	f.Add(must(SignCertificate(n.identity, 1, []CertifiedDevice{certified(n.device, 1000, 2000)})).Raw)
	f.Add(must(SignCertificate(n.identity, 0, nil)).Raw)
	f.Fuzz(func(t *testing.T, raw []byte) {
		c, err := ParseCertificate(raw)
		if err != nil {
			return
		}
		again, err := ParseCertificate(c.Raw)
		if err != nil || string(again.Raw) != string(c.Raw) || !slices.Equal(again.Devices, c.Devices) {
			t.Fatalf("its own bytes parse otherwise: %v", err)
		}
	})
}

func FuzzParseKeyDocument(f *testing.F) {
	n, alone := testNode(1), testKey(3)
	cert := must(SignCertificate(n.identity, 1, []CertifiedDevice{certified(n.device, 1000, 2000)}))
	f.Add(must(SignKeyDocument(n.identity.Server, []SigningKey{n.device, n.identity}, map[KeyID]OldVerifyKey{"ed25519:1": {public(n.device), 5}}, cert, 5000)).Raw)
	f.Add(must(SignKeyDocument(alone.Server, []SigningKey{alone}, nil, nil, 5000)).Raw)
	f.Fuzz(func(t *testing.T, raw []byte) {
		d, err := ParseKeyDocument(raw)
		if err != nil {
			return
		}
		again, err := ParseKeyDocument(d.Raw)
		if err != nil || string(again.Raw) != string(d.Raw) || len(again.VerifyKeys) != len(d.VerifyKeys) || len(again.OldVerifyKeys) != len(d.OldVerifyKeys) {
			t.Fatalf("its own bytes parse otherwise: %v", err)
		}
		for id := range d.VerifyKeys {
			if _, err := d.KeyFor(id, 1500, true); err != nil && !errors.Is(err, ErrSignature) && !errors.Is(err, ErrKeyNotValid) {
				t.Fatalf("%s: %v", id, err)
			}
		}
	})
}
