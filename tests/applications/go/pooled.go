// Go's database/sql on lib/pq: a stack, connections opened on demand (see ../README.md).
package main

import (
	"bufio"
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"math/rand"
	"net"
	"net/http"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	_ "github.com/lib/pq"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

const workers = 6

type connection struct {
	Pool    string  `json:"pool"`
	Port    int     `json:"port"`
	Backend int     `json:"backend"`
	Leased  bool    `json:"leased"`
	Kept    string  `json:"kept"`
	Since   float64 `json:"since"`
	Uses    int     `json:"uses"`
}

type lease struct {
	conn *sql.Conn
	port int
	why  string
}

var (
	name  = flag.String("name", "", "only there to be seen in the command line")
	truth = flag.String("truth", "", "file of the truth")
	size  = flag.Int("size", 10, "most connections")
	least = flag.Int("least", 0, "connections opened at once")

	lock        sync.Mutex
	connections = map[int]*connection{}
	pools       = map[string]*sql.DB{}
	rates       = map[string]float64{}
	kept        []lease
	own         []*sql.DB
	served      int
	failed      int
	waiting     int
)

func now() float64 { return float64(time.Now().UnixNano()) / 1e9 }

// The library reads the server from libpq's variables.
func open(application string) (*sql.DB, error) {
	return sql.Open("postgres", "sslmode=disable application_name="+application)
}

func pool(of string) (*sql.DB, error) {
	lock.Lock()
	known := pools[of]
	lock.Unlock()
	if known != nil {
		return known, nil
	}
	made, err := open(os.Getenv("PGAPPNAME"))
	if err != nil {
		return nil, err
	}
	made.SetMaxOpenConns(*size)
	made.SetMaxIdleConns(*size)
	lock.Lock()
	pools[of] = made
	lock.Unlock()
	return made, nil
}

// Asks who we are at the server, and takes so long for it.
func ask(conn *sql.Conn, of string, seconds float64, why string) (lease, error) {
	var backend, port int
	statement := fmt.Sprintf("SELECT pg_backend_pid(), inet_client_port() FROM pg_sleep(%g)", seconds)
	if err := conn.QueryRowContext(context.Background(), statement).Scan(&backend, &port); err != nil {
		return lease{}, err
	}
	lock.Lock()
	defer lock.Unlock()
	uses := 1
	if known := connections[port]; known != nil {
		uses = known.Uses + 1
	}
	connections[port] = &connection{of, port, backend, true, why, now(), uses}
	return lease{conn, port, why}, nil
}

func take(of string) (*sql.Conn, error) {
	from, err := pool(of)
	if err != nil {
		return nil, err
	}
	lock.Lock()
	waiting++
	lock.Unlock()
	defer func() { lock.Lock(); waiting--; lock.Unlock() }()
	within, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	return from.Conn(within)
}

func give(it lease) error {
	lock.Lock()
	known := connections[it.port]
	known.Leased, known.Kept, known.Since = false, "", now()
	lock.Unlock()
	return it.conn.Close()
}

func serve(of string, seconds float64) error {
	conn, err := take(of)
	if err != nil {
		return err
	}
	it, err := ask(conn, of, seconds, "")
	if err != nil {
		conn.Close()
		return err
	}
	return give(it)
}

func fill(of string, number int) error {
	var leases []lease
	for len(leases) < number {
		conn, err := take(of)
		if err != nil {
			return err
		}
		it, err := ask(conn, of, 0, "")
		if err != nil {
			return err
		}
		leases = append(leases, it)
	}
	for _, it := range leases {
		if err := give(it); err != nil {
			return err
		}
	}
	return nil
}

func keep(number int, why string) ([]int, error) {
	ports := []int{}
	for i := 0; i < number; i++ {
		conn, err := take("main")
		if err != nil {
			return nil, err
		}
		if why == "leak" {
			if _, err := conn.ExecContext(context.Background(), "BEGIN"); err != nil {
				return nil, err
			}
		}
		it, err := ask(conn, "main", 0, why)
		if err != nil {
			return nil, err
		}
		kept = append(kept, it)
		ports = append(ports, it.port)
	}
	return ports, nil
}

func repair() (int, error) {
	count := len(kept)
	for _, it := range kept {
		if it.why == "leak" {
			if _, err := it.conn.ExecContext(context.Background(), "COMMIT"); err != nil {
				return 0, err
			}
		}
		if err := give(it); err != nil {
			return 0, err
		}
	}
	kept = nil
	return count, nil
}

func rate(of string) float64 {
	lock.Lock()
	defer lock.Unlock()
	return rates[of]
}

// One of the goroutines that share a rate.
func work(of string, number int) {
	due := time.Now().Add(time.Duration(float64(number) / rate(of) * float64(time.Second)))
	for {
		every := rate(of)
		if every == 0 {
			return
		}
		time.Sleep(time.Until(due))
		// People do not come by the clock; a steady beat would always or never meet the agent's own.
		due = due.Add(time.Duration((0.2 + 1.6*rand.Float64()) * workers / every * float64(time.Second)))
		err := serve(of, 0.004)
		lock.Lock()
		if err == nil {
			served++
		} else {
			failed++
			fmt.Fprintln(os.Stderr, err)
		}
		lock.Unlock()
	}
}

func traffic(of string, wanted float64) (float64, error) {
	lock.Lock()
	was, known := rates[of], pools[of] != nil
	rates[of] = wanted
	lock.Unlock()
	if !known {
		if err := fill(of, *size); err != nil {
			return 0, err
		}
	}
	for number := 0; number < workers && wanted > 0 && was == 0; number++ {
		go work(of, number)
	}
	return wanted, nil
}

func burst(number int, seconds float64) error {
	failures := make(chan error, number)
	for i := 0; i < number; i++ {
		go func() { failures <- serve("main", seconds) }()
	}
	var first error
	for i := 0; i < number; i++ {
		if err := <-failures; err != nil && first == nil {
			first = err
		}
	}
	return first
}

// A connection of its own, outside the pools.
func byItself(why, application string, statements ...string) (int, error) {
	db, err := open(application)
	if err != nil {
		return 0, err
	}
	conn, err := db.Conn(context.Background())
	if err != nil {
		return 0, err
	}
	it, err := ask(conn, "own", 0, why)
	if err != nil {
		return 0, err
	}
	for _, statement := range statements {
		if _, err := conn.ExecContext(context.Background(), statement); err != nil {
			return 0, err
		}
	}
	own = append(own, db)
	return it.port, nil
}

func tell() {
	file, err := os.OpenFile(*truth, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		panic(err)
	}
	for ; ; time.Sleep(200 * time.Millisecond) {
		lock.Lock()
		all := []*connection{}
		for _, it := range connections {
			all = append(all, it)
		}
		line, _ := json.Marshal(map[string]any{"at": now(), "waiting": waiting, "connections": all})
		lock.Unlock()
		fmt.Fprintln(file, string(line))
	}
}

// The page of Prometheus' own collector for database/sql, on a free port, which is the answer.
func metrics() (int, error) {
	from, err := pool("main")
	if err != nil {
		return 0, err
	}
	registry := prometheus.NewRegistry()
	if err := registry.Register(collectors.NewDBStatsCollector(from, "main")); err != nil {
		return 0, err
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return 0, err
	}
	go http.Serve(listener, promhttp.HandlerFor(registry, promhttp.HandlerOpts{}))
	return listener.Addr().(*net.TCPAddr).Port, nil
}

func does(words []string) (any, error) {
	number := func(at int) float64 {
		if at >= len(words) {
			return 0
		}
		value, _ := strconv.ParseFloat(words[at], 64)
		return value
	}
	switch words[0] {
	case "fill":
		return number(1), fill("main", int(number(1)))
	case "traffic":
		return traffic("main", number(1))
	case "second":
		return traffic("second", number(1))
	case "leak", "keep":
		return keep(int(number(1)), words[0])
	case "repair":
		return repair()
	case "burst":
		return number(1), burst(int(number(1)), number(2))
	case "listen":
		return byItself("listen", os.Getenv("PGAPPNAME"), "LISTEN orders")
	case "lock":
		return byItself("lock", os.Getenv("PGAPPNAME"), "SELECT pg_advisory_lock(7)")
	case "batch":
		return byItself("batch", "nightly-batch", "BEGIN", "SELECT count(*) FROM pg_class")
	case "metrics":
		return metrics()
	case "served":
		lock.Lock()
		defer lock.Unlock()
		return map[string]int{"served": served, "failed": failed}, nil
	}
	return nil, errors.New("no such command")
}

func main() {
	flag.Parse()
	say := json.NewEncoder(os.Stdout)
	if err := fill("main", *least); err != nil {
		panic(err)
	}
	go tell()
	say.Encode(map[string]int{"ready": os.Getpid()})
	lines := bufio.NewScanner(os.Stdin)
	for lines.Scan() {
		if did, err := does(strings.Fields(lines.Text())); err != nil {
			say.Encode(map[string]string{"failed": err.Error()})
		} else {
			say.Encode(map[string]any{"did": did})
		}
	}
}
