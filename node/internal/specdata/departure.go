package specdata

import "encoding/json"

// Departure is a way in which the answers of an endpoint do not fit the specification's schema, on purpose.
type Departure struct {
	// Why is the reason.
	Why string
	// Mend takes that one difference out of the body of a success, so that everything else is still checked.
	Mend func(body map[string]any)
}

// Mended returns a body of the endpoint's without what the departures name of it.
func (e *Endpoint) Mended(departures map[string]Departure, status int, body []byte) []byte {
	d, departs := departures[e.Name]
	var value map[string]any
	if !departs || status >= 400 || json.Unmarshal(body, &value) != nil || value == nil {
		return body
	}
	d.Mend(value)
	mended, err := json.Marshal(value)
	if err != nil {
		return body // never: it was JSON
	}
	return mended
}
