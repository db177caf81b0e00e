import com.sun.net.httpserver.HttpServer;
import com.zaxxer.hikari.HikariConfig;
import com.zaxxer.hikari.HikariDataSource;
import com.zaxxer.hikari.HikariPoolMXBean;
import java.io.BufferedReader;
import java.io.FileWriter;
import java.io.InputStreamReader;
import java.io.PrintWriter;
import java.net.InetSocketAddress;
import java.nio.charset.StandardCharsets;
import java.sql.Connection;
import java.sql.DriverManager;
import java.sql.ResultSet;
import java.sql.SQLException;
import java.sql.Statement;
import java.util.ArrayList;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import java.util.Properties;
import java.util.concurrent.ConcurrentHashMap;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.atomic.AtomicInteger;
import java.util.stream.Collectors;

/** HikariCP on PostgreSQL's JDBC driver: neither a queue nor a stack (see ../README.md). */
public class Pooled {
    private static final int WORKERS = 6;

    private record Row(
            String pool, int port, int backend, boolean leased, String kept, double since, int uses) {
        String json() {
            return String.format(
                    "{\"pool\":\"%s\",\"port\":%d,\"backend\":%d,\"leased\":%b,\"kept\":\"%s\",\"since\":%.3f,\"uses\":%d}",
                    pool, port, backend, leased, kept, since, uses);
        }
    }

    private record Lease(Connection connection, int port) {}

    private static final Map<String, String> options = new HashMap<>();
    private static final Map<Integer, Row> connections = new ConcurrentHashMap<>();
    private static final Map<String, HikariDataSource> pools = new ConcurrentHashMap<>();
    private static final Map<String, Double> rates = new ConcurrentHashMap<>();
    private static final List<Lease> kept = new ArrayList<>();
    private static final List<Connection> own = new ArrayList<>();
    private static final AtomicInteger served = new AtomicInteger();
    private static final AtomicInteger failed = new AtomicInteger();
    private static final AtomicInteger waiting = new AtomicInteger();

    private static double now() {
        return System.currentTimeMillis() / 1000.0;
    }

    private static String url() {
        Map<String, String> of = System.getenv();
        return "jdbc:postgresql://" + of.get("PGHOST") + ":" + of.get("PGPORT") + "/" + of.get("PGDATABASE");
    }

    private static Properties login(String application) {
        Properties login = new Properties();
        login.setProperty("user", System.getenv("PGUSER"));
        login.setProperty("password", System.getenv("PGPASSWORD"));
        login.setProperty("ApplicationName", application);
        return login;
    }

    private static HikariDataSource made() {
        HikariConfig config = new HikariConfig();
        config.setJdbcUrl(url());
        config.setDataSourceProperties(login(System.getenv("PGAPPNAME")));
        config.setMaximumPoolSize(Integer.parseInt(options.get("size")));
        config.setMinimumIdle(Integer.parseInt(options.get("least")));
        config.setConnectionTimeout(5000);
        return new HikariDataSource(config);
    }

    private static Connection take(String pool) throws SQLException {
        waiting.incrementAndGet();
        try {
            return pools.get(pool).getConnection();
        } finally {
            waiting.decrementAndGet();
        }
    }

    /** Asks who we are at the server, and takes so long for it. */
    private static Lease ask(Connection connection, String pool, double seconds, String why) throws SQLException {
        String sql = "SELECT pg_backend_pid(), inet_client_port() FROM pg_sleep(" + seconds + ")";
        try (Statement statement = connection.createStatement(); ResultSet answer = statement.executeQuery(sql)) {
            answer.next();
            int backend = answer.getInt(1);
            int port = answer.getInt(2);
            Row known = connections.get(port);
            int uses = known == null ? 1 : known.uses + 1;
            connections.put(port, new Row(pool, port, backend, true, why, now(), uses));
            return new Lease(connection, port);
        }
    }

    private static void give(Lease lease) throws SQLException {
        Row known = connections.get(lease.port);
        connections.put(
                lease.port, new Row(known.pool, known.port, known.backend, false, "", now(), known.uses));
        lease.connection.close();
    }

    private static void serve(String pool, double seconds) throws SQLException {
        Connection connection = take(pool);
        Lease lease;
        try {
            lease = ask(connection, pool, seconds, "");
        } catch (SQLException error) {
            connection.close();
            throw error;
        }
        give(lease);
    }

    private static int fill(String pool, int number) throws SQLException {
        List<Lease> leases = new ArrayList<>();
        for (int i = 0; i < number; i++) {
            leases.add(ask(take(pool), pool, 0, ""));
        }
        for (Lease lease : leases) {
            give(lease);
        }
        return number;
    }

    private static String keep(int number, String why) throws SQLException {
        List<String> ports = new ArrayList<>();
        for (int i = 0; i < number; i++) {
            Connection connection = take("main");
            // HikariCP commits each statement by itself unless it is told otherwise.
            connection.setAutoCommit(why.equals("keep"));
            Lease lease = ask(connection, "main", 0, why);
            kept.add(lease);
            ports.add(Integer.toString(lease.port));
        }
        return "[" + String.join(",", ports) + "]";
    }

    private static int repair() throws SQLException {
        int count = kept.size();
        for (Lease lease : kept) {
            if (!lease.connection.getAutoCommit()) {
                lease.connection.commit();
            }
            give(lease);
        }
        kept.clear();
        return count;
    }

    /** One of the threads that share a rate. */
    private static void work(String pool, int number) {
        long due = System.nanoTime() + (long) (1e9 * number / rates.get(pool));
        while (rates.get(pool) > 0) {
            try {
                TimeUnit.NANOSECONDS.sleep(due - System.nanoTime());
                // People do not come by the clock; a steady beat would always or never meet the agent's own.
                double pause = (0.2 + 1.6 * Math.random()) * WORKERS / Math.max(rates.get(pool), 0.1);
                due += (long) (1e9 * pause);
                serve(pool, 0.004);
                served.incrementAndGet();
            } catch (SQLException error) {
                System.err.println(error);
                failed.incrementAndGet();
            } catch (InterruptedException error) {
                return;
            }
        }
    }

    private static double traffic(String pool, double rate) throws SQLException {
        if (!pools.containsKey(pool)) {
            pools.put(pool, made());
            fill(pool, Integer.parseInt(options.get("size")));
        }
        double was = rates.getOrDefault(pool, 0.0);
        rates.put(pool, rate);
        for (int i = 0; i < WORKERS && rate > 0 && was == 0; i++) {
            int number = i;
            background(() -> work(pool, number));
        }
        return rate;
    }

    private static Thread background(Runnable what) {
        Thread thread = new Thread(what);
        thread.setDaemon(true);
        thread.start();
        return thread;
    }

    private static int burst(int number, double seconds) throws InterruptedException {
        List<Thread> threads = new ArrayList<>();
        for (int i = 0; i < number; i++) {
            threads.add(background(() -> {
                try {
                    serve("main", seconds);
                } catch (SQLException error) {
                    failed.incrementAndGet();
                }
            }));
        }
        for (Thread thread : threads) {
            thread.join();
        }
        return number;
    }

    /** A connection of its own, outside the pools. */
    private static int byItself(String why, String application, String... statements) throws SQLException {
        Connection connection = DriverManager.getConnection(url(), login(application));
        Lease lease = ask(connection, "own", 0, why);
        try (Statement statement = connection.createStatement()) {
            for (String sql : statements) {
                statement.execute(sql);
            }
        }
        own.add(connection);
        return lease.port;
    }

    private static void tell() {
        try (PrintWriter file = new PrintWriter(new FileWriter(options.get("truth"), true))) {
            while (true) {
                String rows = connections.values().stream().map(Row::json).collect(Collectors.joining(","));
                file.printf("{\"at\":%.3f,\"waiting\":%d,\"connections\":[%s]}%n", now(), waiting.get(), rows);
                file.flush();
                TimeUnit.MILLISECONDS.sleep(200);
            }
        } catch (Exception error) {
            System.err.println(error);
        }
    }

    /** HikariCP's own numbers under the names that Micrometer gives them, on a free port, which is the answer. */
    private static int metrics() throws Exception {
        HikariDataSource pool = pools.get("main");
        HttpServer server = HttpServer.create(new InetSocketAddress("127.0.0.1", 0), 0);
        server.createContext("/metrics", exchange -> {
            HikariPoolMXBean now = pool.getHikariPoolMXBean();
            Map<String, Integer> numbers = Map.of(
                    "active", now.getActiveConnections(),
                    "idle", now.getIdleConnections(),
                    "pending", now.getThreadsAwaitingConnection(),
                    "max", pool.getMaximumPoolSize(),
                    "min", pool.getMinimumIdle());
            byte[] page = numbers.entrySet().stream()
                    .map(it -> "hikaricp_connections_" + it.getKey() + "{pool=\"main\"} " + it.getValue() + ".0\n")
                    .collect(Collectors.joining())
                    .getBytes(StandardCharsets.UTF_8);
            exchange.sendResponseHeaders(200, page.length);
            exchange.getResponseBody().write(page);
            exchange.close();
        });
        server.start();
        return server.getAddress().getPort();
    }

    private static Object does(String[] words) throws Exception {
        String application = System.getenv("PGAPPNAME");
        return switch (words[0]) {
            case "fill" -> fill("main", Integer.parseInt(words[1]));
            case "traffic" -> traffic("main", Double.parseDouble(words[1]));
            case "second" -> traffic("second", Double.parseDouble(words[1]));
            case "leak", "keep" -> keep(Integer.parseInt(words[1]), words[0]);
            case "repair" -> repair();
            case "burst" -> burst(Integer.parseInt(words[1]), Double.parseDouble(words[2]));
            case "listen" -> byItself("listen", application, "LISTEN orders");
            case "lock" -> byItself("lock", application, "SELECT pg_advisory_lock(7)");
            case "batch" -> byItself("batch", "nightly-batch", "BEGIN", "SELECT count(*) FROM pg_class");
            case "metrics" -> metrics();
            case "served" -> "{\"served\":" + served + ",\"failed\":" + failed + "}";
            default -> throw new IllegalArgumentException("no such command");
        };
    }

    public static void main(String[] arguments) throws Exception {
        for (int i = 0; i + 1 < arguments.length; i += 2) {
            options.put(arguments[i].substring(2), arguments[i + 1]);
        }
        pools.put("main", made());
        background(Pooled::tell);
        System.out.println("{\"ready\":" + ProcessHandle.current().pid() + "}");
        BufferedReader lines = new BufferedReader(new InputStreamReader(System.in));
        for (String line = lines.readLine(); line != null; line = lines.readLine()) {
            try {
                System.out.println("{\"did\":" + does(line.split(" ")) + "}");
            } catch (Exception error) {
                String said = error.toString().replaceAll("[\"\\\\\n]", " ");
                System.out.println("{\"failed\":\"" + said + "\"}");
            }
        }
        Runtime.getRuntime().halt(0);
    }
}
