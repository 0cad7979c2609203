package media

import (
	"bufio"
	"bytes"
	"errors"
	"image"
	"image/color"
	"image/gif"
	"image/jpeg"
	"image/png"
	"io"

	"golang.org/x/image/draw"
	_ "golang.org/x/image/webp" // image.Decode reads it
)

// Bounds on what a picture may cost. What it says of itself is looked at before it is decoded: a file of some kB may unfold to gigabytes.
const (
	// maxDecoded is the memory that a decoded picture may take: a photograph of 40 million pixels.
	maxDecoded = 128 << 20
	// maxFrames and maxFramePixels bound an animation, of which all frames are in memory: 500 frames of 360 by 360.
	maxFrames      = 500
	maxFramePixels = 64 << 20
	// maxSide is the largest width or height that is made.
	maxSide = 2048
	// jpegQuality of thumbnails.
	jpegQuality = 82
)

var (
	// ErrNoPicture: no thumbnail can be made of the file.
	ErrNoPicture = errors.New("no thumbnail can be made of this file")
	// ErrLargePicture: decoding the picture would take more memory than this device gives it.
	ErrLargePicture = errors.New("the picture is too large for thumbnails")
	// errOriginal: the picture itself is what is to be given.
	errOriginal = errors.New("the picture is no larger than what was asked for")
)

// Wanted is what a client asks for (CS API, Thumbnails).
type Wanted struct {
	Width, Height int
	Crop          bool // else it is scaled
	Animated      bool // an animation, if the picture is one
}

// thumbnail writes a thumbnail of the picture to w. It never enlarges: errOriginal says that the picture itself is to be given, of the
// type returned. Other errors: ErrNoPicture, ErrLargePicture, those of in and w.
func thumbnail(in io.ReadSeeker, w io.Writer, want Wanted) (contentType string, err error) {
	config, format, err := image.DecodeConfig(bufio.NewReader(in))
	if err != nil || config.Width <= 0 || config.Height <= 0 {
		return "", ErrNoPicture
	}
	if _, err := in.Seek(0, io.SeekStart); err != nil {
		return "", err
	}
	turned, perPixel := orientation(1), decodedBytes(format, config.ColorModel)
	switch format {
	case "jpeg":
		head := readJPEGHead(bufio.NewReader(in))
		turned = head.orientation
		if !head.sequential {
			perPixel += 4 * perPixel // the decoder keeps all coefficients, 4 bytes for each sample
		}
	case "png":
		if interlaced(in) {
			perPixel *= 2 // the passes are pictures, too
		}
	}
	if int64(config.Width)*int64(config.Height) > maxDecoded/perPixel {
		return "", ErrLargePicture
	}
	frames, costly := 1, false
	if format != "jpeg" {
		if _, err := in.Seek(0, io.SeekStart); err != nil {
			return "", err
		}
		frames, costly = countFrames(format, bufio.NewReader(in))
	}
	if _, err := in.Seek(0, io.SeekStart); err != nil {
		return "", err
	}
	size := turned.upright(image.Pt(config.Width, config.Height))
	to, from := fit(size.X, size.Y, want)
	same := to == size
	moves := frames > 1
	animate := moves && want.Animated && !costly
	switch {
	case same && (!moves || want.Animated):
		return "image/" + format, errOriginal
	case animate && format == "gif":
		return "image/gif", scaleAnimation(in, w, to, from)
	case animate:
		return "image/" + format, errOriginal // of these only stills can be made; larger than asked for is allowed, a still is not what was asked for
	}
	picture, _, err := image.Decode(bufio.NewReader(in))
	if err != nil {
		return "", ErrNoPicture
	}
	from = image.Rectangle{turned.upright(from.Min), turned.upright(from.Max)}
	return encode(w, format, turned.apply(scale(picture, turned.upright(to), from)))
}

// fit is the size of the thumbnail, and which part of the picture it shows. A scaled one covers what was asked for in one dimension at least and is within it in none:
// nobody shall be given less than asked for.
func fit(width, height int, want Wanted) (to image.Point, from image.Rectangle) {
	w, h := min(want.Width, maxSide), min(want.Height, maxSide)
	whole := image.Rect(0, 0, width, height)
	if w >= width && h >= height {
		return whole.Max, whole
	}
	if !want.Crop {
		// The larger of the two factors, or where that is no reduction the picture as it is.
		factorW, factorH := float64(w)/float64(width), float64(h)/float64(height)
		factor := min(max(factorW, factorH), 1)
		if factor == 1 {
			return whole.Max, whole
		}
		return image.Pt(max(int(float64(width)*factor+0.5), 1), max(int(float64(height)*factor+0.5), 1)), whole
	}
	// The middle part with the proportions asked for; it is not enlarged.
	w, h = max(w, 1), max(h, 1)
	cut := image.Pt(width, max(width*h/w, 1))
	if cut.Y > height {
		cut = image.Pt(max(height*w/h, 1), height)
	}
	corner := image.Pt((width-cut.X)/2, (height-cut.Y)/2)
	if cut.X < w {
		w, h = cut.X, cut.Y
	}
	return image.Pt(w, h), image.Rectangle{corner, corner.Add(cut)}
}

func scale(picture image.Image, to image.Point, from image.Rectangle) *image.RGBA {
	out := image.NewRGBA(image.Rectangle{Max: to})
	draw.BiLinear.Scale(out, out.Bounds(), picture, from.Add(picture.Bounds().Min), draw.Src, nil)
	return out
}

// encode writes photographs as JPEG and everything else without loss.
func encode(w io.Writer, format string, picture *image.RGBA) (contentType string, err error) {
	if format == "jpeg" || format == "webp" && picture.Opaque() {
		return "image/jpeg", jpeg.Encode(w, picture, &jpeg.Options{Quality: jpegQuality})
	}
	return "image/png", (&png.Encoder{CompressionLevel: png.BestSpeed}).Encode(w, picture)
}

// scaleAnimation scales each frame of a GIF. Frames change parts of the picture, so each is drawn on what was before it; they come out whole.
func scaleAnimation(in io.Reader, w io.Writer, to image.Point, from image.Rectangle) error {
	moving, err := gif.DecodeAll(bufio.NewReader(in))
	if err != nil {
		return ErrNoPicture
	}
	canvas := image.NewRGBA(image.Rect(0, 0, moving.Config.Width, moving.Config.Height))
	small := image.NewRGBA(image.Rectangle{Max: to})
	var before *image.RGBA
	for i, frame := range moving.Image {
		disposal := byte(0)
		if i < len(moving.Disposal) {
			disposal = moving.Disposal[i]
		}
		if disposal == gif.DisposalPrevious {
			before = &image.RGBA{Pix: bytes.Clone(canvas.Pix), Stride: canvas.Stride, Rect: canvas.Rect}
		}
		draw.Draw(canvas, frame.Bounds(), frame, frame.Bounds().Min, draw.Over)
		draw.BiLinear.Scale(small, small.Bounds(), canvas, from, draw.Src, nil)
		moving.Image[i] = reduced(small, frame.Palette)
		switch disposal {
		case gif.DisposalBackground:
			draw.Draw(canvas, frame.Bounds(), image.Transparent, image.Point{}, draw.Src)
		case gif.DisposalPrevious:
			canvas = before
		}
		if i < len(moving.Disposal) {
			moving.Disposal[i] = gif.DisposalBackground // each is whole, and none shines through the next
		}
	}
	moving.Config.Width, moving.Config.Height = to.X, to.Y
	moving.BackgroundIndex = 0
	return gif.EncodeAll(w, moving)
}

// reduced paints a frame with its palette. One that covered a part only may lack the transparency that the whole needs.
func reduced(frame *image.RGBA, palette color.Palette) *image.Paletted {
	clear := false
	for _, c := range palette {
		_, _, _, a := c.RGBA()
		clear = clear || a == 0
	}
	if !clear && len(palette) < 256 {
		palette = append(palette[:len(palette):len(palette)], color.Transparent)
	}
	out := image.NewPaletted(frame.Rect, palette)
	draw.FloydSteinberg.Draw(out, out.Rect, frame, image.Point{})
	return out
}

// decodedBytes is how much memory a pixel takes at most while the file is decoded.
func decodedBytes(format string, m color.Model) int64 {
	if _, ok := m.(color.Palette); ok {
		return 1
	}
	switch {
	case m == color.Gray16Model || m == color.RGBA64Model || m == color.NRGBA64Model: // a gray PNG may name a colour that is transparent, and has four samples then
		return 8
	case m == color.GrayModel && format != "png":
		return 1
	case m == color.YCbCrModel:
		return 3
	case format == "jpeg", format == "webp": // RGB or CMYK; without loss: the decoder makes a second picture of the first
		return 8
	}
	return 4
}
