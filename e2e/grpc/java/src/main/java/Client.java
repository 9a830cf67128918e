import com.google.gson.Gson;
import com.google.gson.GsonBuilder;
import io.grpc.CallOptions;
import io.grpc.ClientCall;
import io.grpc.ConnectivityState;
import io.grpc.Grpc;
import io.grpc.InsecureChannelCredentials;
import io.grpc.ManagedChannel;
import io.grpc.Metadata;
import io.grpc.MethodDescriptor;
import io.grpc.Status;
import java.io.BufferedReader;
import java.io.InputStreamReader;
import java.util.Map;
import java.util.concurrent.CountDownLatch;
import java.util.concurrent.Semaphore;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.atomic.AtomicInteger;
import java.util.function.BooleanSupplier;

/**
 * A grpc-java client that a test steers over standard input; e2e/grpc/README.md has the commands.
 *
 * <pre>Client TARGET [CALLS]        (TARGET: xds:///orders, or 127.0.0.1:1234 without xDS)</pre>
 *
 * gRPC itself reads GRPC_XDS_BOOTSTRAP. No generated code: an empty request, the backend's name in reply.
 */
public final class Client {
    private static final MethodDescriptor<byte[], byte[]> METHOD = Raw.method("meshkeeper.e2e.Backend/Name");
    private static final int OUTSTANDING = 64;
    private static final long DEADLINE_SECONDS = 10;

    private final ManagedChannel channel;
    private Traffic traffic;

    private Client(String target) {
        channel = Grpc.newChannelBuilder(target, InsecureChannelCredentials.create()).build();
        channel.getState(true);
    }

    public static void main(String[] arguments) throws Exception {
        if (arguments.length != 1 && arguments.length != 2) {
            System.err.println("usage: Client TARGET [CALLS]");
            System.exit(2);
        }
        Client client = new Client(arguments[0]);
        Gson gson = new GsonBuilder().disableHtmlEscaping().create();
        if (arguments.length == 2) {
            System.out.println(gson.toJson(client.answer("call " + arguments[1])));
        } else {
            BufferedReader lines = new BufferedReader(new InputStreamReader(System.in));
            for (String line = lines.readLine(); line != null; line = lines.readLine()) {
                if (line.strip().equals("quit")) {
                    break;
                }
                if (!line.isBlank()) {
                    System.out.println(gson.toJson(client.answer(line.strip())));
                }
            }
        }
        client.channel.shutdownNow();
        System.exit(0);
    }

    private Object answer(String line) throws InterruptedException {
        String[] words = line.split("\\s+");
        try {
            return switch (words[0]) {
                case "ready" -> ready(words.length > 1 ? Double.parseDouble(words[1]) : 30);
                case "call" -> call(Integer.parseInt(words[1]), number(words, 2, OUTSTANDING));
                case "start" -> start(number(words, 1, 1));
                case "stop" -> stop();
                default -> throw new IllegalArgumentException("unknown command");
            };
        } catch (RuntimeException error) {
            return Map.of("error", line + ": " + error);
        }
    }

    private static int number(String[] words, int at, int otherwise) {
        return at < words.length ? Integer.parseInt(words[at]) : otherwise;
    }

    private Object ready(double seconds) throws InterruptedException {
        long end = System.nanoTime() + (long) (seconds * 1e9);
        ConnectivityState state = channel.getState(true);
        while (state != ConnectivityState.READY && System.nanoTime() < end) {
            CountDownLatch changed = new CountDownLatch(1);
            channel.notifyWhenStateChanged(state, changed::countDown);
            changed.await(end - System.nanoTime(), TimeUnit.NANOSECONDS);
            state = channel.getState(true);
        }
        return Map.of("ready", state == ConnectivityState.READY, "state", state.name());
    }

    private Object call(int calls, int outstanding) throws InterruptedException {
        AtomicInteger begun = new AtomicInteger();
        Tally tally = new Tally();
        run(() -> begun.incrementAndGet() <= calls, outstanding, tally);
        return tally.report();
    }

    /** Calls without end, until {@link #stop}. */
    private Object start(int outstanding) {
        if (traffic != null) {
            throw new IllegalStateException("traffic is running already");
        }
        traffic = new Traffic(outstanding);
        traffic.start();
        return Map.of("started", true);
    }

    private Object stop() throws InterruptedException {
        if (traffic == null) {
            throw new IllegalStateException("no traffic is running");
        }
        Traffic ending = traffic;
        traffic = null;
        ending.stopping = true;
        ending.join();
        return ending.tally.report();
    }

    private void run(BooleanSupplier wantsMore, int outstanding, Tally tally) throws InterruptedException {
        Semaphore slots = new Semaphore(outstanding);
        slots.acquire();
        while (wantsMore.getAsBoolean()) {
            once(tally, slots);
            slots.acquire();
        }
        slots.acquire(outstanding - 1);
    }

    private void once(Tally tally, Semaphore slots) {
        CallOptions options = CallOptions.DEFAULT.withDeadlineAfter(DEADLINE_SECONDS, TimeUnit.SECONDS);
        ClientCall<byte[], byte[]> call = channel.newCall(METHOD, options);
        call.start(new ClientCall.Listener<>() {
            private byte[] reply = new byte[0];

            @Override
            public void onMessage(byte[] message) {
                reply = message;
            }

            @Override
            public void onClose(Status status, Metadata trailers) {
                tally.add(status, reply);
                slots.release();
            }
        }, new Metadata());
        call.sendMessage(new byte[0]);
        call.halfClose();
        call.request(1);
    }

    /** A thread that calls in the background; it ends with the calls under way. */
    private final class Traffic extends Thread {
        private final Tally tally = new Tally();
        private final int outstanding;
        private volatile boolean stopping;

        private Traffic(int outstanding) {
            this.outstanding = outstanding;
            setDaemon(true);
        }

        @Override
        public void run() {
            try {
                Client.this.run(() -> !stopping, outstanding, tally);
            } catch (InterruptedException error) {
                Thread.currentThread().interrupt();
            }
        }
    }
}
