package media

import (
	"bufio"
	"encoding/binary"
	"errors"
	"image"
	"io"
)

// What the decoders do not tell: whether a picture moves, how much all of it would take, and which side is up.

// countFrames looks through a file for frames: 2 stands for any number of them in the formats of which no animations are made. costly: to decode all
// frames would be too much.
func countFrames(format string, in *bufio.Reader) (frames int, costly bool) {
	switch format {
	case "gif":
		return countGIF(in)
	case "png":
		return countPNG(in), false
	case "webp":
		// RIFF, size, WEBP, VP8X, size, flags: bit 1 says that there is an animation (RFC 9649, Extended File Format).
		head := make([]byte, 21)
		if _, err := io.ReadFull(in, head); err == nil && string(head[12:16]) == "VP8X" && head[20]&2 != 0 {
			return 2, false
		}
	}
	return 1, false
}

// interlaced says whether a PNG is (PNG, Third Edition, IHDR). What breaks off there is no picture.
func interlaced(in io.Reader) bool {
	head := make([]byte, 29)
	_, err := io.ReadFull(in, head)
	return err != nil || head[28] != 0
}

// countPNG says whether there is a chunk acTL before the first IDAT (PNG, Third Edition, Animation).
func countPNG(in *bufio.Reader) int {
	if _, err := in.Discard(8); err != nil {
		return 1
	}
	for {
		head := make([]byte, 8)
		if _, err := io.ReadFull(in, head); err != nil {
			return 1
		}
		switch string(head[4:]) {
		case "acTL":
			return 2
		case "IDAT":
			return 1
		}
		if _, err := io.CopyN(io.Discard, in, int64(binary.BigEndian.Uint32(head))+4); err != nil {
			return 1
		}
	}
}

// countGIF counts the frames of a GIF without decoding them (GIF89a, Grammar). A file that breaks off has those that were seen.
func countGIF(in *bufio.Reader) (frames int, costly bool) {
	head := make([]byte, 13)
	if _, err := io.ReadFull(in, head); err != nil {
		return 1, false
	}
	skipTable(in, head[10])
	// Frames may be small parts, but each is drawn on the whole, of which there are two at times, 4 bytes a pixel.
	whole, pixels := int64(binary.LittleEndian.Uint16(head[6:]))*int64(binary.LittleEndian.Uint16(head[8:])), int64(0)
	tooLarge := whole > maxDecoded/8
	for {
		kind, err := in.ReadByte()
		if err != nil {
			return frames, false
		}
		switch kind {
		case 0x21: // extension
			_, err = in.Discard(1)
		case 0x2c: // image
			frame := make([]byte, 9)
			if _, err := io.ReadFull(in, frame); err != nil {
				return frames, false
			}
			frames++
			pixels += whole
			if frames > maxFrames || pixels > maxFramePixels || tooLarge && frames > 1 {
				return frames, true
			}
			skipTable(in, frame[8])
			_, err = in.Discard(1)
		default: // trailer, or what is not known
			return frames, false
		}
		for size := byte(1); size > 0 && err == nil; {
			if size, err = in.ReadByte(); err == nil {
				_, err = in.Discard(int(size))
			}
		}
		if err != nil {
			return frames, false
		}
	}
}

// skipTable passes over a colour table, if the flags say that there is one.
func skipTable(in *bufio.Reader, flags byte) {
	if flags&0x80 != 0 {
		_, _ = in.Discard(3 << (flags&7 + 1)) // an end is met by the next read
	}
}

// orientation is that of Exif, 1 to 8: how the picture is to be turned to be seen upright.
type orientation int

// sideways says whether width and height change places.
func (o orientation) sideways() bool { return o >= 5 && o <= 8 }

// upright changes between the places of the picture as it is stored and as it is seen; parts are around its middle.
func (o orientation) upright(p image.Point) image.Point {
	if o.sideways() {
		return image.Pt(p.Y, p.X)
	}
	return p
}

// apply shows the picture upright.
func (o orientation) apply(m *image.RGBA) *image.RGBA {
	if o <= 1 || o > 8 {
		return m
	}
	from := m.Bounds()
	w, h := from.Dx(), from.Dy()
	size := image.Rect(0, 0, w, h)
	if o.sideways() {
		size = image.Rect(0, 0, h, w)
	}
	out := image.NewRGBA(size)
	for y := range h {
		for x := range w {
			tx, ty := x, y
			switch o {
			case 2:
				tx = w - 1 - x
			case 3:
				tx, ty = w-1-x, h-1-y
			case 4:
				ty = h - 1 - y
			case 5:
				tx, ty = y, x
			case 6:
				tx, ty = h-1-y, x
			case 7:
				tx, ty = h-1-y, w-1-x
			case 8:
				tx, ty = y, w-1-x
			}
			out.SetRGBA(tx, ty, m.RGBAAt(from.Min.X+x, from.Min.Y+y))
		}
	}
	return out
}

// jpegHead is what the segments before the first scan tell.
type jpegHead struct {
	orientation orientation
	sequential  bool // it says so: else all coefficients are kept while it is decoded
}

// readJPEGHead reads up to the first scan; of a file that breaks off, what it has seen. It passes over what is between segments as image/jpeg does, so that
// both see the same.
func readJPEGHead(in *bufio.Reader) (head jpegHead) {
	head.orientation = 1
	if _, err := in.Discard(2); err != nil {
		return head
	}
	for {
		marker, err := nextMarker(in)
		if err != nil {
			return head
		}
		size := make([]byte, 2)
		if _, err := io.ReadFull(in, size); err != nil {
			return head
		}
		length := int(binary.BigEndian.Uint16(size)) - 2
		if length < 0 {
			return head
		}
		switch marker {
		case 0xc0, 0xc1: // SOF0, SOF1
			head.sequential = true
		case 0xda: // SOS
			return head
		case 0xe1: // APP1
			segment := make([]byte, length)
			if _, err := io.ReadFull(in, segment); err != nil {
				return head
			}
			if o, err := exifOrientation(segment); err == nil {
				head.orientation = o
			}
			continue
		}
		if _, err := in.Discard(length); err != nil {
			return head
		}
	}
}

// nextMarker finds the next segment's: any bytes may stand before it, and fill bytes (ISO 10918-1, B.1.1.2); RST0 to RST7 have no segment.
func nextMarker(in *bufio.Reader) (marker byte, err error) {
	for {
		for marker != 0xff {
			if marker, err = in.ReadByte(); err != nil {
				return 0, err
			}
		}
		for marker == 0xff {
			if marker, err = in.ReadByte(); err != nil {
				return 0, err
			}
		}
		if marker != 0 && (marker < 0xd0 || marker > 0xd7) {
			return marker, nil
		}
	}
}

var errNoExif = errors.New("no Exif orientation")

// exifOrientation finds tag 0x0112 in the first directory (Exif 2.3, 4.6.4; TIFF 6.0, section 2).
func exifOrientation(segment []byte) (orientation, error) {
	if len(segment) < 14 || string(segment[:6]) != "Exif\x00\x00" {
		return 0, errNoExif
	}
	tiff := segment[6:]
	var order binary.ByteOrder = binary.BigEndian
	if string(tiff[:2]) == "II" {
		order = binary.LittleEndian
	}
	at := uint64(order.Uint32(tiff[4:]))
	if at+2 > uint64(len(tiff)) {
		return 0, errNoExif
	}
	entries := tiff[at+2:]
	for range order.Uint16(tiff[at:]) {
		if len(entries) < 12 {
			break
		}
		if order.Uint16(entries) == 0x0112 {
			if o := order.Uint16(entries[8:]); o >= 1 && o <= 8 {
				return orientation(o), nil
			}
			break
		}
		entries = entries[12:]
	}
	return 0, errNoExif
}
