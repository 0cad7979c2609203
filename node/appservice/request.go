package appservice

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"time"
)

// Bounds on what a service can cost.
const (
	queryTimeout = 5 * time.Second // of one attempt of a query, for which somebody waits
	pingTimeout  = 30 * time.Second
	sendTimeout  = 60 * time.Second // of a transaction; bridges work it off before they answer
	maxAnswer    = 1 << 20          // bytes of an answer that is read
	maxShownBody = 4 << 10          // bytes of an answer that a ping hands on
	maxQueries   = 16               // under way to one service at once
)

// ErrNoURL is returned for a service that wants no traffic.
var ErrNoURL = errors.New("the application service has no URL")

// reply is what a service has answered.
type reply struct {
	status int
	body   []byte // at most maxAnswer
}

// unknownPath says whether the service does not know the path, so that an older one may serve (AS API, Legacy routes). A service that
// answers with an errcode of its own knows it.
func (r *reply) unknownPath() bool {
	if r.status < 300 {
		return false
	}
	var body struct {
		Code string `json:"errcode"`
	}
	return json.Unmarshal(r.body, &body) != nil || body.Code == "" || body.Code == "M_UNRECOGNIZED"
}

// legacyPath is where services of older drafts serve a path; "" if nowhere (AS API, Legacy routes).
func legacyPath(path string) string {
	if rest, ok := strings.CutPrefix(path, "/_matrix/app/v1/thirdparty/"); ok {
		return "/_matrix/app/unstable/thirdparty/" + rest
	}
	for _, part := range []string{"/transactions/", "/users/", "/rooms/"} {
		if rest, ok := strings.CutPrefix(path, "/_matrix/app/v1"+part); ok {
			return part + rest
		}
	}
	return ""
}

// call asks the service at a path, whose segments are escaped, and, where it does not know that, at the path of older drafts.
func (s *Service) call(ctx context.Context, method, path string, query url.Values, body []byte) (*reply, error) {
	r, err := s.request(ctx, method, path, query, body)
	old := legacyPath(path)
	if err != nil || old == "" || !r.unknownPath() {
		return r, err
	}
	return s.request(ctx, method, old, query, body)
}

// request makes one request. The error is one of the connection: any status is an answer.
func (s *Service) request(ctx context.Context, method, path string, query url.Values, body []byte) (*reply, error) {
	if s.url == nil {
		return nil, ErrNoURL
	}
	address := s.url.String() + path
	if len(query) > 0 {
		address += "?" + query.Encode()
	}
	req, err := http.NewRequestWithContext(ctx, method, address, bytes.NewReader(body))
	if err != nil {
		return nil, fmt.Errorf("application service %s: %w", s.ID, err)
	}
	req.Header.Set("Authorization", "Bearer "+s.hsToken)
	req.Header.Set("Accept", "application/json")
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	resp, err := s.client.Do(req)
	if err != nil {
		return nil, fmt.Errorf("application service %s: %w", s.ID, err)
	}
	defer resp.Body.Close()
	answer, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
	if err != nil {
		return nil, fmt.Errorf("application service %s: %w", s.ID, err)
	}
	return &reply{resp.StatusCode, answer}, nil
}

// BadStatusError is the answer of a service that was not 200.
type BadStatusError struct {
	Status int
	Body   string // the beginning
}

func (e *BadStatusError) Error() string {
	return fmt.Sprintf("the application service answered with status %d", e.Status)
}

// Ping asks the service whether it can be reached and takes its hs_token, and says how long that took (AS API, Pinging). The errors are
// ErrNoURL, *BadStatusError, context.DeadlineExceeded if it does not answer in time, or why there is no connection.
func (s *Service) Ping(ctx context.Context, transactionID string) (time.Duration, error) {
	ctx, cancel := context.WithTimeout(ctx, pingTimeout)
	defer cancel()
	ping := map[string]string{}
	if transactionID != "" {
		ping["transaction_id"] = transactionID
	}
	body, err := json.Marshal(ping)
	if err != nil {
		return 0, err
	}
	began := time.Now()
	r, err := s.request(ctx, http.MethodPost, "/_matrix/app/v1/ping", nil, body)
	if err != nil {
		return 0, err
	}
	if r.status != http.StatusOK {
		return 0, &BadStatusError{r.status, string(r.body[:min(len(r.body), maxShownBody)])}
	}
	return time.Since(began), nil
}
