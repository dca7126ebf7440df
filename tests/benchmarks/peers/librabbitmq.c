/*
 * The least that an echo over RabbitMQ can be in C: what the broker and the machine allow.
 *
 * As pika.py: a reply queue, a correlation id, an acknowledgement of each request, many calls
 * outstanding on one connection, replies consumed without acknowledgement. It does not do: JSON
 * (the bytes are sent back as they came), envelope, context, dispatch, deadlines, confirms.
 *
 * Its command line, and what it prints: see command.py. Compiled with -DPAYLOAD="...".
 */
#include <amqp.h>
#include <amqp_tcp_socket.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

static const char *QUEUE = "benchmark.librabbitmq";
static const amqp_channel_t CHANNEL = 1;

static void give_up(const char *what)
{
    fprintf(stderr, "librabbitmq: %s\n", what);
    exit(1);
}

static void check(amqp_rpc_reply_t reply, const char *what)
{
    if (reply.reply_type != AMQP_RESPONSE_NORMAL)
        give_up(what);
}

static double now(void)
{
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec + time.tv_nsec * 1e-9;
}

static amqp_connection_state_t connect_to(char *url)
{
    struct amqp_connection_info at;
    amqp_connection_state_t connection = amqp_new_connection();
    amqp_socket_t *socket = amqp_tcp_socket_new(connection);

    amqp_default_connection_info(&at);
    if (amqp_parse_url(url, &at) != AMQP_STATUS_OK)
        give_up("this is not a URL");
    if (amqp_socket_open(socket, at.host, at.port) != AMQP_STATUS_OK)
        give_up("cannot connect");
    check(amqp_login(connection, at.vhost, 0, 131072, 0, AMQP_SASL_METHOD_PLAIN, at.user, at.password), "cannot log in");
    amqp_channel_open(connection, CHANNEL);
    check(amqp_get_rpc_reply(connection), "cannot open a channel");
    return connection;
}

static void publish(amqp_connection_state_t connection, amqp_bytes_t to, amqp_bytes_t body, amqp_basic_properties_t *properties)
{
    if (amqp_basic_publish(connection, CHANNEL, amqp_empty_bytes, to, 0, 0, properties, body) != AMQP_STATUS_OK)
        give_up("cannot publish");
}

static void serve(char *url)
{
    amqp_connection_state_t connection = connect_to(url);
    amqp_bytes_t queue = amqp_cstring_bytes(QUEUE);

    amqp_queue_declare(connection, CHANNEL, queue, 0, 0, 0, 0, amqp_empty_table);
    check(amqp_get_rpc_reply(connection), "cannot declare the queue");
    amqp_basic_qos(connection, CHANNEL, 0, 256, 0);
    check(amqp_get_rpc_reply(connection), "cannot set the prefetch");
    amqp_basic_consume(connection, CHANNEL, queue, amqp_empty_bytes, 0, 0, 0, amqp_empty_table);
    check(amqp_get_rpc_reply(connection), "cannot consume");
    puts("READY");
    fflush(stdout);
    for (;;) {
        amqp_envelope_t request;
        amqp_basic_properties_t properties;

        amqp_maybe_release_buffers(connection);
        check(amqp_consume_message(connection, &request, NULL, 0), "no request");
        properties._flags = AMQP_BASIC_CORRELATION_ID_FLAG;
        properties.correlation_id = request.message.properties.correlation_id;
        publish(connection, request.message.properties.reply_to, request.message.body, &properties);
        amqp_basic_ack(connection, CHANNEL, request.delivery_tag, 0);
        amqp_destroy_envelope(&request);
    }
}

static int compare(const void *one, const void *other)
{
    double difference = *(const double *)one - *(const double *)other;
    return (difference > 0) - (difference < 0);
}

static void report(double *latencies, size_t count, double seconds)
{
    qsort(latencies, count, sizeof *latencies, compare);
    printf("{\"calls\": %zu, \"seconds\": %.6f, \"p50_ms\": %.6f, \"p99_ms\": %.6f}\n", count, seconds,
           latencies[count / 2] * 1e3, latencies[count * 99 / 100] * 1e3);
    fflush(stdout);
}

static void call(char *url, size_t in_flight, double warm_up, double seconds)
{
    amqp_connection_state_t connection = connect_to(url);
    amqp_bytes_t body = amqp_cstring_bytes(PAYLOAD), replies;
    double *sent = calloc(in_flight, sizeof *sent), *latencies = NULL;
    size_t count = 0, room = 0, slot;
    double warm = now() + warm_up, began = 0;
    amqp_basic_properties_t properties;

    replies = amqp_bytes_malloc_dup(
        amqp_queue_declare(connection, CHANNEL, amqp_empty_bytes, 0, 0, 1, 1, amqp_empty_table)->queue);
    amqp_basic_consume(connection, CHANNEL, replies, amqp_empty_bytes, 0, 1, 1, amqp_empty_table);
    check(amqp_get_rpc_reply(connection), "cannot consume");
    properties._flags = AMQP_BASIC_REPLY_TO_FLAG | AMQP_BASIC_CORRELATION_ID_FLAG;
    properties.reply_to = replies;
    for (slot = 0; slot < in_flight; slot++) {
        properties.correlation_id.bytes = &slot;
        properties.correlation_id.len = sizeof slot;
        sent[slot] = now();
        publish(connection, amqp_cstring_bytes(QUEUE), body, &properties);
    }
    for (;;) {
        amqp_envelope_t reply;
        double at;

        amqp_maybe_release_buffers(connection);
        check(amqp_consume_message(connection, &reply, NULL, 0), "no reply");
        at = now();
        if (reply.message.body.len != body.len || memcmp(reply.message.body.bytes, body.bytes, body.len) != 0)
            give_up("the reply is not the request");
        memcpy(&slot, reply.message.properties.correlation_id.bytes, sizeof slot);
        amqp_destroy_envelope(&reply);
        if (began != 0 && at >= began + seconds) {
            report(latencies, count, at - began);
            exit(0);
        }
        if (began != 0) {
            if (count == room)
                latencies = realloc(latencies, (room = 2 * room + 65536) * sizeof *latencies);
            latencies[count++] = at - sent[slot];
        } else if (at >= warm) {
            began = at;
            puts("READY");
            fflush(stdout);
        }
        properties.correlation_id.bytes = &slot;
        properties.correlation_id.len = sizeof slot;
        sent[slot] = now();
        publish(connection, amqp_cstring_bytes(QUEUE), body, &properties);
    }
}

int main(int count, char **words)
{
    if (count == 3 && strcmp(words[1], "serve") == 0)
        serve(words[2]);
    if (count != 6 || strcmp(words[1], "call") != 0)
        give_up("serve URL | call URL IN_FLIGHT WARM_UP SECONDS");
    call(words[2], strtoul(words[3], NULL, 10), atof(words[4]), atof(words[5]));
}
