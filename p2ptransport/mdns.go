package p2ptransport

import (
	"crypto/rand"
	"errors"
	"log/slog"
	mrand "math/rand/v2"
	"net"
	"runtime"
	"slices"
	"strings"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	ma "github.com/multiformats/go-multiaddr"
	manet "github.com/multiformats/go-multiaddr/net"
	"golang.org/x/net/dns/dnsmessage"
	"golang.org/x/net/ipv4"
	"golang.org/x/net/ipv6"
)

// Multicast DNS (RFC 6762) with service discovery (RFC 6763), spoken as libp2p's mDNS specification lays it out: a PTR
// record from the service to a random instance name, and a TXT record of that instance with one "dnsaddr=" string for
// each address. Why not libp2p's own package: it gives up for good where IPv6 multicast is missing, reports a peer once
// and never again, cannot be told that the network changed, tells all addresses on all interfaces, and does not say on
// which interface a link-local address was heard.

const (
	mdnsService  = "_plexus._udp.local."
	mdnsPort     = 5353
	mdnsTXT      = "dnsaddr="
	mdnsSealed   = "sealed=" // before an address of a private mesh; see MeshKey.seal
	mdnsTTL      = 120       // seconds, RFC 6762 section 10 for records that hang on addresses
	mdnsFlush    = 1 << 15
	mdnsSendHops = 255 // RFC 6762 section 11
	// mdnsQueryMax: queries begin at one second after start or a change of networks and double up to this.
	mdnsQueryMax = 60 * time.Second
	// mdnsKnown are the answers at most that a question names as known, so that it stays one packet: 41 bytes for each.
	mdnsKnown = 30
	// mdnsRest between two answers on one interface, RFC 6762 section 6.
	mdnsRest = time.Second
	// mdnsAddrs that are read from one message, and told in one.
	mdnsAddrs = 16
	// mdnsPacket is larger than any that we send; RFC 6762 section 17 allows 9000.
	mdnsPacket = 9000
)

var (
	mdnsGroup4 = &net.UDPAddr{IP: net.IPv4(224, 0, 0, 251), Port: mdnsPort}
	mdnsGroup6 = &net.UDPAddr{IP: net.ParseIP("ff02::fb"), Port: mdnsPort}
)

// mdns announces this host on the local networks and finds others. run owns all its fields; the readers pass packets.
type mdns struct {
	h        *Host
	log      *slog.Logger
	dialect  dialect
	instance string // "random._plexus._udp.local."
	changed  chan struct{}
	packets  chan packet

	beacon    beacon
	sock4     *ipv4.PacketConn
	sock6     *ipv6.PacketConn
	ifaces    map[int]*mdnsIface
	instances map[PeerID]string // last instance heard of a peer: a new one means that it started anew
	warned    bool
}

// mdnsIface is an interface whose multicast group was joined.
type mdnsIface struct {
	net.Interface
	v4, v6   bool // joined
	answered time.Time
	answer   bool      // an answer is due
	lastAsk  time.Time // when anybody last asked, we or another
}

type packet struct {
	from  net.Addr
	to    net.IP // nil if the system does not tell
	iface int    // 0 if the system does not tell
	data  []byte

	beacon bool // came to beaconPort
}

func newMDNS(h *Host) *mdns {
	d := dialectOf(h.meshKey)
	return &mdns{
		h: h, log: h.log, dialect: d,
		instance:  strings.ToLower(rand.Text()) + "." + d.service,
		changed:   make(chan struct{}, 1),
		packets:   make(chan packet, 64),
		ifaces:    make(map[int]*mdnsIface),
		instances: make(map[PeerID]string),
	}
}

// networkChanged makes run look at the interfaces again, and announce and ask anew.
func (m *mdns) networkChanged() {
	select {
	case m.changed <- struct{}{}:
	default:
	}
}

// run until the host closes.
func (m *mdns) run() {
	defer m.close()
	query := time.NewTimer(0)
	defer query.Stop()
	answer := time.NewTimer(time.Hour)
	defer answer.Stop()
	broadcast := time.NewTimer(0)
	defer broadcast.Stop()
	wait := time.Second
	begin := func() {
		m.join()
		for _, i := range m.ifaces {
			i.answer, i.answered, i.lastAsk = true, time.Time{}, time.Time{}
		}
		m.sendAnswers(time.Now())
		wait, m.beacon.wait = time.Second, beaconFirst
		query.Reset(0)
		broadcast.Reset(0)
	}
	begin()
	for {
		select {
		case <-m.h.ctx.Done():
			return
		case <-m.changed:
			begin()
		case <-query.C:
			m.join()
			m.ask(time.Now(), wait)
			query.Reset(wait + mrand.N(wait/8)) // or all who began together would ask before they heard one of them ask
			wait = min(2*wait, m.queryMax())
		case <-broadcast.C:
			m.join()
			broadcast.Reset(m.beacon.send(m))
		case p := <-m.packets:
			m.receive(p)
		case <-answer.C:
		}
		if next := m.sendAnswers(time.Now()); next > 0 {
			answer.Reset(next)
		}
	}
}

// open gets the sockets that are missing.
func (m *mdns) open() {
	var errs []error
	if m.sock4 == nil {
		// For a multicast address net sets SO_REUSEADDR and binds the port on all addresses, beside other responders.
		c, err := net.ListenPacket("udp4", "224.0.0.0:5353")
		if err != nil {
			errs = append(errs, err)
		} else {
			m.sock4 = ipv4.NewPacketConn(c)
			_ = m.sock4.SetControlMessage(ipv4.FlagInterface|ipv4.FlagDst, true)
			_ = m.sock4.SetMulticastTTL(mdnsSendHops)
			_ = m.sock4.SetMulticastLoopback(true) // other nodes on this machine
			sock := m.sock4
			m.h.work.start(func() {
				m.read(func(b []byte) (packet, int, error) {
					n, cm, from, err := sock.ReadFrom(b)
					if cm == nil { // Windows does not tell
						return packet{from: from}, n, err
					}
					return packet{from: from, iface: cm.IfIndex, to: cm.Dst}, n, err
				})
			})
		}
	}
	if m.sock6 == nil {
		c, err := net.ListenPacket("udp6", "[ff02::]:5353")
		if err != nil {
			errs = append(errs, err)
		} else {
			m.sock6 = ipv6.NewPacketConn(c)
			_ = m.sock6.SetControlMessage(ipv6.FlagInterface|ipv6.FlagDst, true)
			_ = m.sock6.SetMulticastHopLimit(mdnsSendHops)
			_ = m.sock6.SetMulticastLoopback(true)
			sock := m.sock6
			m.h.work.start(func() {
				m.read(func(b []byte) (packet, int, error) {
					n, cm, from, err := sock.ReadFrom(b)
					if cm == nil {
						return packet{from: from}, n, err
					}
					return packet{from: from, iface: cm.IfIndex, to: cm.Dst}, n, err
				})
			})
		}
	}
	if len(errs) == 2 && !m.warned {
		m.warned = true
		m.log.Warn("cannot find peers on the local network by mDNS; trying again", "error", errors.Join(errs...))
	}
}

// read passes multicast packets on until the socket is closed. What comes by unicast may come from anywhere.
func (m *mdns) read(from func([]byte) (packet, int, error)) {
	buf := make([]byte, mdnsPacket)
	var ears ears
	for {
		p, n, err := from(buf)
		switch {
		case errors.Is(err, net.ErrClosed):
			return
		case err != nil:
			select { // a passing error of one interface; never spin
			case <-time.After(mdnsRest):
			case <-m.h.ctx.Done():
				return
			}
		case (p.beacon || p.to == nil || p.to.IsMulticast()) && ears.hear(p.from, time.Now()):
			p.data = slices.Clone(buf[:n])
			select {
			case m.packets <- p:
			case <-m.h.ctx.Done():
				return
			}
		}
	}
}

func (m *mdns) close() {
	m.beacon.close()
	if m.sock4 != nil {
		_ = m.sock4.Close()
	}
	if m.sock6 != nil {
		_ = m.sock6.Close()
	}
}

// join opens sockets and joins the group on each interface that has come, and forgets those that went.
func (m *mdns) join() {
	m.open()
	seen := make(map[int]bool)
	all, err := net.Interfaces()
	if err != nil {
		m.log.Debug("list interfaces", "error", err)
		return
	}
	for _, i := range all {
		if i.Flags&net.FlagUp == 0 || i.Flags&(net.FlagMulticast|net.FlagBroadcast|net.FlagLoopback) == 0 {
			continue
		}
		seen[i.Index] = true
		known := m.ifaces[i.Index]
		if known == nil {
			known = &mdnsIface{}
			m.ifaces[i.Index] = known
		}
		known.Interface = i
		if m.sock4 != nil && !known.v4 {
			known.v4 = m.sock4.JoinGroup(&i, mdnsGroup4) == nil
		}
		if m.sock6 != nil && !known.v6 {
			known.v6 = m.sock6.JoinGroup(&i, mdnsGroup6) == nil
		}
	}
	for index := range m.ifaces {
		if !seen[index] {
			delete(m.ifaces, index)
		}
	}
}

// queryMax is mdnsQueryMax, and more where more peers are connected than a question can name: the others all answer it.
func (m *mdns) queryMax() time.Duration {
	return mdnsQueryMax * time.Duration(1+len(m.h.roster.Peers())/(mdnsKnown+1))
}

// known are the instances of connected peers, which need not answer: what they would tell is known (RFC 6762 section 7.1).
func (m *mdns) known() (instances []string) {
	for _, p := range m.h.roster.Peers() {
		if instance, ok := m.instances[p.ID]; ok && !p.Relay {
			instances = append(instances, instance)
		}
	}
	return instances
}

// ask sends the question on interfaces where nobody asked it lately: all hear the answers (RFC 6762 section 7.3).
func (m *mdns) ask(now time.Time, lately time.Duration) {
	known := m.known()
	mrand.Shuffle(len(known), func(i, j int) { known[i], known[j] = known[j], known[i] })
	msg, err := m.dialect.question(known[:min(len(known), mdnsKnown)]...)
	if err != nil {
		m.log.Error("mDNS question", "error", err)
		return
	}
	for _, i := range m.ifaces {
		if now.Sub(i.lastAsk) >= lately/2 {
			i.lastAsk = now
			m.send(i, msg)
		}
	}
}

// sendAnswers sends the answers that are due and says how long the next has to wait; 0: none waits.
func (m *mdns) sendAnswers(now time.Time) (next time.Duration) {
	for _, i := range m.ifaces {
		if !i.answer {
			continue
		}
		if rest := mdnsRest - now.Sub(i.answered); rest > 0 {
			if next == 0 || rest < next {
				next = rest
			}
			continue
		}
		i.answer, i.answered = false, now
		addrs := m.addrsOn(i)
		if len(addrs) == 0 {
			continue
		}
		msg, err := m.dialect.announcement(m.instance, addrs)
		if err != nil {
			m.log.Error("mDNS announcement", "error", err)
			continue
		}
		m.send(i, msg)
	}
	return next
}

func (m *mdns) send(i *mdnsIface, msg []byte) {
	if i.v4 {
		if runtime.GOOS == "windows" { // where the control message is not heeded
			_ = m.sock4.SetMulticastInterface(&i.Interface)
		}
		if _, err := m.sock4.WriteTo(msg, &ipv4.ControlMessage{IfIndex: i.Index}, mdnsGroup4); err != nil {
			m.log.Debug("mDNS send", "interface", i.Name, "error", err)
		}
	}
	if i.v6 {
		if runtime.GOOS == "windows" {
			_ = m.sock6.SetMulticastInterface(&i.Interface)
		}
		if _, err := m.sock6.WriteTo(msg, &ipv6.ControlMessage{IfIndex: i.Index}, mdnsGroup6); err != nil {
			m.log.Debug("mDNS send", "interface", i.Name, "error", err)
		}
	}
}

// addrsOn are the addresses under which this host is reached through an interface, and no others: what networks a
// device is in besides concerns nobody on this one.
func (m *mdns) addrsOn(i *mdnsIface) []ma.Multiaddr {
	on, err := i.Addrs()
	if err != nil {
		return nil
	}
	var ips []ma.Multiaddr
	for _, a := range on {
		if n, ok := a.(*net.IPNet); ok {
			if ip, err := manet.FromIP(n.IP); err == nil {
				ips = append(ips, ip)
			}
		}
	}
	resolved, err := manet.ResolveUnspecifiedAddresses(m.h.swarm.ListenAddresses(), ips)
	if err != nil {
		return nil
	}
	resolved = slices.DeleteFunc(resolved, func(a ma.Multiaddr) bool {
		ip, _ := ma.SplitFirst(a)
		return ip == nil || !slices.ContainsFunc(ips, ip.Multiaddr().Equal)
	})
	addrs, err := peer.AddrInfoToP2pAddrs(&peer.AddrInfo{ID: m.h.host.ID(), Addrs: resolved})
	if err != nil {
		return nil
	}
	return addrs[:min(len(addrs), mdnsAddrs)]
}

// receive takes a question or an announcement.
func (m *mdns) receive(p packet) {
	i := m.ifaces[p.iface]
	if p.iface == 0 {
		i = m.ifaceOf(p.from)
	}
	if i == nil || p.beacon && !wasBroadcast(p.to, i.Interface) {
		return
	}
	asked, peers := m.dialect.read(p.data)
	if asked {
		known := m.dialect.known(p.data)
		i.answer = i.answer || !slices.Contains(known, m.instance)
		own := append(m.known(), m.instance)
		if !slices.ContainsFunc(known, func(k string) bool { return !slices.Contains(own, k) }) {
			i.lastAsk = time.Now() // and who is not known here answers
		}
	}
	for _, a := range peers {
		if a.instance == m.instance || a.peer.ID == m.h.host.ID() {
			continue
		}
		m.heard(i, a)
	}
}

// ifaceOf finds the interface on whose network a sender is.
func (m *mdns) ifaceOf(from net.Addr) *mdnsIface {
	sender, ok := from.(*net.UDPAddr)
	if !ok {
		return nil
	}
	for _, i := range m.ifaces {
		if sender.Zone == i.Name {
			return i
		}
		addrs, _ := i.Addrs()
		for _, a := range addrs {
			if n, ok := a.(*net.IPNet); ok && n.Contains(sender.IP) && !sender.IP.IsLinkLocalUnicast() {
				return i
			}
		}
	}
	return nil
}

// heard passes an announcement on to the keeper. A connected peer under a new instance name has started anew, one at a new address may
// have moved, and what connection there is may be dead.
func (m *mdns) heard(i *mdnsIface, a announced) {
	id := PeerID(a.peer.ID.String())
	last, known := m.instances[id]
	if last != a.instance {
		if len(m.instances) >= maxKnown {
			clear(m.instances) // costs a probe for each at worst
		}
		m.instances[id] = a.instance
		m.log.Debug("heard peer", "peer", id, "interface", i.Name)
	}
	addrs := slices.DeleteFunc(inZone(a.peer.Addrs, i.Name), func(a ma.Multiaddr) bool {
		return manet.IsIPLoopback(a) != (i.Flags&net.FlagLoopback != 0) // loopback means this machine only if heard there
	})
	fresh := len(addrs) > 0 && m.h.keeper.heard(a.peer.ID, addrs)
	if m.h.swarm.Connectedness(a.peer.ID) == network.Connected && known && (fresh || last != a.instance) {
		m.h.probe(a.peer.ID, probeTimeout)
	}
}

// inZone says on which interface link-local addresses are found.
func inZone(addrs []ma.Multiaddr, iface string) []ma.Multiaddr {
	zone, err := ma.NewComponent("ip6zone", iface)
	if err != nil {
		return addrs
	}
	zoned := make([]ma.Multiaddr, 0, len(addrs))
	for _, a := range addrs {
		if manet.IsIP6LinkLocal(a) {
			a = zone.Multiaddr().Encapsulate(a)
		}
		zoned = append(zoned, a)
	}
	return zoned
}

// dialect is how the nodes of one mesh speak mDNS. Those of a private mesh have a service name that only the key gives, and
// seal each address; who has no key sees that a machine announces something, and nothing of it.
type dialect struct {
	service string
	key     *MeshKey // nil: in the clear
}

func dialectOf(key *MeshKey) dialect {
	if key == nil {
		return dialect{service: mdnsService}
	}
	return dialect{key.service(), key}
}

// text is one string of a TXT record.
func (d dialect) text(addr string) string {
	if d.key == nil {
		return mdnsTXT + addr
	}
	return mdnsSealed + d.key.seal(addr)
}

// addr is the reverse of text.
func (d dialect) addr(text string) (string, bool) {
	if d.key == nil {
		return strings.CutPrefix(text, mdnsTXT)
	}
	sealed, ok := strings.CutPrefix(text, mdnsSealed)
	if !ok {
		return "", false
	}
	return d.key.open(sealed)
}

// question asks for all instances, and those known need not answer.
func (d dialect) question(known ...string) ([]byte, error) {
	name, err := dnsmessage.NewName(d.service)
	if err != nil {
		return nil, err
	}
	msg := dnsmessage.Message{Questions: []dnsmessage.Question{
		{Name: name, Type: dnsmessage.TypePTR, Class: dnsmessage.ClassINET},
	}}
	for _, k := range known {
		instance, err := dnsmessage.NewName(k)
		if err != nil {
			return nil, err
		}
		header := dnsmessage.ResourceHeader{Name: name, Class: dnsmessage.ClassINET, TTL: mdnsTTL}
		msg.Answers = append(msg.Answers, dnsmessage.Resource{Header: header, Body: &dnsmessage.PTRResource{PTR: instance}})
	}
	return msg.Pack()
}

// known are the instances that a question names as known. One known for half its time or longer does not count (RFC 6762 section 7.1).
func (d dialect) known(question []byte) (instances []string) {
	var p dnsmessage.Parser
	if _, err := p.Start(question); err != nil || p.SkipAllQuestions() != nil {
		return nil
	}
	for {
		h, err := p.AnswerHeader()
		if err != nil {
			return instances
		}
		if h.Type != dnsmessage.TypePTR || h.TTL < mdnsTTL/2 || !strings.EqualFold(h.Name.String(), d.service) {
			if p.SkipAnswer() != nil {
				return instances
			}
			continue
		}
		r, err := p.PTRResource()
		if err != nil {
			return instances
		}
		instances = append(instances, strings.ToLower(r.PTR.String()))
	}
}

// announcement is the answer to question, with the records that libp2p's specification asks for. addrs end in /p2p/ID.
func (d dialect) announcement(instance string, addrs []ma.Multiaddr) ([]byte, error) {
	service, err := dnsmessage.NewName(d.service)
	if err != nil {
		return nil, err
	}
	name, err := dnsmessage.NewName(instance)
	if err != nil {
		return nil, err
	}
	host, err := dnsmessage.NewName(strings.TrimSuffix(instance, d.service) + "local.")
	if err != nil {
		return nil, err
	}
	header := func(n dnsmessage.Name, class dnsmessage.Class) dnsmessage.ResourceHeader {
		return dnsmessage.ResourceHeader{Name: n, Class: class, TTL: mdnsTTL}
	}
	const unique = dnsmessage.ClassINET | mdnsFlush
	var texts []string
	var port uint16
	var ips []dnsmessage.Resource
	for _, a := range addrs {
		if t := d.text(a.String()); len(t) < 256 {
			texts = append(texts, t)
		}
		if d.key != nil {
			continue // no port and no address in the clear
		}
		transport, _ := peer.SplitAddr(a)
		if transport == nil {
			continue
		}
		na, err := manet.ToNetAddr(transport)
		if err != nil {
			continue
		}
		switch na := na.(type) {
		case *net.TCPAddr:
			port = uint16(na.Port)
			if ip := na.IP.To4(); ip != nil {
				ips = append(ips, dnsmessage.Resource{Header: header(host, unique), Body: &dnsmessage.AResource{A: [4]byte(ip)}})
			} else {
				ips = append(ips, dnsmessage.Resource{Header: header(host, unique), Body: &dnsmessage.AAAAResource{AAAA: [16]byte(na.IP)}})
			}
		case *net.UDPAddr:
			if port == 0 {
				port = uint16(na.Port)
			}
		}
	}
	msg := dnsmessage.Message{
		Header:  dnsmessage.Header{Response: true, Authoritative: true},
		Answers: []dnsmessage.Resource{{Header: header(service, dnsmessage.ClassINET), Body: &dnsmessage.PTRResource{PTR: name}}},
		Additionals: append([]dnsmessage.Resource{
			{Header: header(name, unique), Body: &dnsmessage.TXTResource{TXT: texts}},
			{Header: header(name, unique), Body: &dnsmessage.SRVResource{Port: port, Target: host}},
		}, ips...),
	}
	return msg.Pack()
}

// announced is a peer under the name of one of its runs.
type announced struct {
	instance string
	peer     peer.AddrInfo
}

// read reads a message from the network: whether it asks for our service, and the peers that it announces. What
// does not parse is left out.
func (d dialect) read(data []byte) (asked bool, peers []announced) {
	var p dnsmessage.Parser
	h, err := p.Start(data)
	if err != nil {
		return false, nil
	}
	questions, err := p.AllQuestions()
	if err != nil {
		return false, nil
	}
	if !h.Response {
		return slices.ContainsFunc(questions, func(q dnsmessage.Question) bool {
			return strings.EqualFold(q.Name.String(), d.service) && (q.Type == dnsmessage.TypePTR || q.Type == dnsmessage.TypeALL)
		}), nil
	}
	next := func(header func() (dnsmessage.ResourceHeader, error), skip func() error) bool {
		for {
			rh, err := header()
			if err != nil {
				return errors.Is(err, dnsmessage.ErrSectionDone)
			}
			name := rh.Name.String()
			if rh.Type != dnsmessage.TypeTXT || rh.TTL == 0 || !strings.HasSuffix(strings.ToLower(name), "."+d.service) {
				if skip() != nil {
					return false
				}
				continue
			}
			txt, err := p.TXTResource()
			if err != nil {
				return false
			}
			if a, ok := d.readTXT(txt.TXT); ok && len(peers) < mdnsAddrs {
				peers = append(peers, announced{strings.ToLower(name), a})
			}
		}
	}
	_ = next(p.AnswerHeader, p.SkipAnswer) &&
		next(p.AuthorityHeader, p.SkipAuthority) &&
		next(p.AdditionalHeader, p.SkipAdditional)
	return false, peers
}

// readTXT reads the addresses of one peer; strings that name another than the first are left out.
func (d dialect) readTXT(texts []string) (info peer.AddrInfo, ok bool) {
	for _, t := range texts {
		if len(info.Addrs) == mdnsAddrs {
			break
		}
		s, found := d.addr(t)
		if !found {
			continue
		}
		a, err := ma.NewMultiaddr(s)
		if err != nil {
			continue
		}
		transport, id := peer.SplitAddr(a)
		if transport == nil || id == "" || info.ID != "" && id != info.ID || !dialable(transport) {
			continue
		}
		info.ID = id
		info.Addrs = append(info.Addrs, transport)
	}
	return info, len(info.Addrs) > 0
}

// dialable refuses what cannot be the address of a machine on the local network: names, relays, zones not ours to give.
func dialable(a ma.Multiaddr) bool {
	first, _ := ma.SplitFirst(a)
	if first == nil || first.Protocol().Code != ma.P_IP4 && first.Protocol().Code != ma.P_IP6 {
		return false
	}
	if _, err := a.ValueForProtocol(ma.P_CIRCUIT); err == nil {
		return false
	}
	ip, err := manet.ToIP(a)
	return err == nil && !ip.IsUnspecified() && !ip.IsMulticast()
}
